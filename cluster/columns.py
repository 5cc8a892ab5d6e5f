"""From the fields of a job class to the columns of its table: types, checks, defaults, and values for the INSERT.

Pure: no connection is used. `tables` writes the DDL and compares it with what a database has.
"""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb
from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.errors import JobArgumentError, JobDefinitionError
from cluster.secret import Secret

OnDelete = Literal["cascade", "restrict", "set null", "set default", "no action"]


@dataclass(frozen=True)
class References:
    """A foreign key: `Annotated[int, References("customers.id", on_delete="cascade")]`.

    target: table and column, the table optionally with its schema: "shop.customers.id".
    """

    target: str
    on_delete: OnDelete = "no action"

    def __post_init__(self) -> None:
        if len(self.target.split(".")) not in {2, 3} or not all(self.target.split(".")):
            raise JobDefinitionError(f'References takes "table.column", not {self.target!r}')
        if self.on_delete not in get_args(OnDelete):
            raise JobDefinitionError(f"on_delete is one of {', '.join(get_args(OnDelete))}, not {self.on_delete!r}")

    @property
    def table(self) -> str:
        """The target without its column."""
        return self.target.rpartition(".")[0]

    def clause(self) -> sql.Composed:
        *table, column = self.target.split(".")
        return sql.SQL("REFERENCES {} ({}) ON DELETE {}").format(
            sql.Identifier(*table),
            sql.Identifier(column),
            sql.SQL(typing.cast("Any", self.on_delete.upper())),
        )


@dataclass(frozen=True)
class CopyOf:
    """Default factory of a field whose default is mutable: every job gets a copy of its own."""

    value: Any

    def __call__(self) -> Any:
        return copy.deepcopy(self.value)


@dataclass(frozen=True)
class ColumnType:
    """A Postgres type for new columns, and every type that an existing column may have instead (as pg_type names)."""

    name: str
    fits: frozenset[str]


_INTEGER = ColumnType("bigint", frozenset({"int2", "int4", "int8"}))
_TEXT = ColumnType("text", frozenset({"text", "varchar", "bpchar", "citext"}))
_JSONB = ColumnType("jsonb", frozenset({"jsonb", "json"}))
_ENUM = ColumnType("text", _TEXT.fits | {"enum"})

# bool before int and datetime before date: the first class that a type is a subclass of wins.
_TYPES: dict[type, ColumnType] = {
    bool: ColumnType("boolean", frozenset({"bool"})),
    int: _INTEGER,
    float: ColumnType("double precision", frozenset({"float4", "float8"})),
    str: _TEXT,
    Decimal: ColumnType("numeric", frozenset({"numeric"})),
    datetime: ColumnType("timestamp with time zone", frozenset({"timestamptz"})),
    date: ColumnType("date", frozenset({"date"})),
    time: ColumnType("time without time zone", frozenset({"time"})),
    timedelta: ColumnType("interval", frozenset({"interval"})),
    UUID: ColumnType("uuid", frozenset({"uuid"})),
    bytes: ColumnType("bytea", frozenset({"bytea"})),
}


@dataclass(frozen=True)
class Column:
    """One column that a field of a job class stands for.

    default: the column's default as SQL; None: the column has none, so an INSERT must give a value (or NULL, if nullable).
    has_factory: Python makes the default, a new one for each job.
    to_database: from the validated Python value to what psycopg sends, or JobArgumentError if that would not come back as the same
    value; None: the value goes as it is.
    """

    name: str
    type: ColumnType
    nullable: bool
    default: sql.Composable | None
    has_factory: bool
    checks: tuple[sql.Composed, ...]
    references: References | None
    to_database: Callable[[Any], Any] | None
    is_secret: bool = False

    def definition(self) -> sql.Composed:
        """The column as in CREATE TABLE or ADD COLUMN."""
        parts: list[sql.Composable] = [self.bare_definition()]
        if self.references is not None:
            parts.append(self.references.clause())
        parts += [sql.SQL("CHECK ({})").format(check) for check in self.checks]
        return sql.SQL(" ").join(parts)

    def bare_definition(self) -> sql.Composed:
        """The column without what every row of a table would have to be read for."""
        parts: list[sql.Composable] = [sql.Identifier(self.name), sql.SQL(typing.cast("Any", self.type.name))]
        if not self.nullable:
            parts.append(sql.SQL("NOT NULL"))
        if self.default is not None:
            parts += [sql.SQL("DEFAULT"), self.default]
        return sql.SQL(" ").join(parts)

    def constraints(self) -> list[sql.Composed]:
        """The rest of the definition, as constraints of the table."""
        found = [sql.SQL("CHECK ({})").format(check) for check in self.checks]
        if self.references is not None:
            found.append(sql.SQL("FOREIGN KEY ({}) {}").format(sql.Identifier(self.name), self.references.clause()))
        return found

    def value(self, python_value: Any) -> Any:
        """The value as psycopg takes it."""
        if python_value is None or self.to_database is None:
            return python_value
        if not self.is_secret:
            return self.to_database(python_value)
        try:
            return self.to_database(python_value)
        except JobArgumentError:
            raise JobArgumentError(f"{self.name}: this secret would not come back from the database as it is") from None


def column_of(name: str, field: FieldInfo) -> Column:
    """The column for one pydantic field. JobDefinitionError: the type has no column type, or its values would not come back."""
    if field.alias is not None or field.validation_alias is not None or field.serialization_alias is not None:
        raise JobDefinitionError(f"field {name}: no alias, please: a field has the name of its column")
    annotation, metadata, nullable = _unwrap(field.annotation, list(field.metadata))
    column_type, to_database = _column_type(name, annotation, metadata)
    return Column(
        name=name,
        type=column_type,
        nullable=nullable or field.default is None,
        default=(default := _default(name, field, to_database)),
        has_factory=default is None and field.default_factory is not None,
        checks=tuple(_checks(sql.Identifier(name), annotation, metadata, column_type)),
        references=next((item for item in metadata if isinstance(item, References)), None),
        to_database=to_database,
        is_secret=any(isinstance(item, Secret) or item is Secret for item in metadata),
    )


def _unwrap(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any], bool]:
    """Peels Annotated and Optional off a type, collecting what Annotated carried."""
    nullable = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *extra = get_args(annotation)
            for item in extra:
                metadata += item.metadata if isinstance(item, FieldInfo) else [item]
        elif origin in {Union, types.UnionType} and type(None) in get_args(annotation):
            nullable = True
            rest = tuple(arg for arg in get_args(annotation) if arg is not type(None))
            annotation = rest[0] if len(rest) == 1 else Union[rest]  # noqa: UP007 - a Union of a computed tuple
        else:
            return annotation, metadata, nullable


def _column_type(name: str, annotation: Any, metadata: list[Any]) -> tuple[ColumnType, Callable[[Any], Any] | None]:
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return _enum_type(name, [member.value for member in annotation]), lambda member: member.value
        if issubclass(annotation, (SecretStr, SecretBytes)):
            raise JobDefinitionError(
                f"field {name}: a secret would arrive as asterisks, and stand in the table if it did not: keep a reference to it"
            )
        for python_type, column_type in _TYPES.items():
            if issubclass(annotation, python_type):
                zone = _ZONES.get(python_type)
                return _with_precision(column_type, metadata), None if zone is None else partial(zone, name)
    if get_origin(annotation) is Literal:
        return _enum_type(name, list(get_args(annotation))), None
    return _by_json_schema(name, annotation)


def _enum_type(name: str, values: list[Any]) -> ColumnType:
    if all(isinstance(value, str) for value in values):
        return _ENUM
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return _INTEGER
    raise JobDefinitionError(f"field {name}: the values of an Enum or Literal must all be str, or all be int")


def _with_precision(column_type: ColumnType, metadata: list[Any]) -> ColumnType:
    digits = next((item.max_digits for item in metadata if getattr(item, "max_digits", None)), None)
    if column_type.name != "numeric" or digits is None:
        return column_type
    places = next((item.decimal_places for item in metadata if getattr(item, "decimal_places", None)), 0)
    return ColumnType(f"numeric({digits}, {places})", column_type.fits)


def _by_json_schema(name: str, annotation: Any) -> tuple[ColumnType, Callable[[Any], Any] | None]:
    """Other types go as what pydantic turns them into: a plain JSON string is text, everything else jsonb."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        schema = adapter.json_schema(mode="serialization")
    except (PydanticInvalidForJsonSchema, TypeError) as error:
        raise JobDefinitionError(
            f"field {name}: no column type for {annotation!r}: use a type that has a JSON form"
        ) from error

    def to_json(value: Any) -> Any:
        """By alias, as it is read."""
        dumped = adapter.dump_python(value, mode="json", by_alias=True)
        try:
            back = adapter.validate_python(dumped)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise JobArgumentError(f"{name}: {value!r:.80} would not fit its own row: {reason}") from error
        compares = type(value).__eq__ is not object.__eq__  # type: ignore[comparison-overlap]
        if back != value and compares:
            raise JobArgumentError(
                f"{name}: {value!r:.80} would come back as {back!r:.80}: its JSON form does not hold all of it"
            )
        return dumped

    if schema.get("type") == "string":
        return _TEXT, to_json
    return _JSONB, lambda value: Jsonb(to_json(value))


def _with_zone(name: str, value: datetime) -> datetime:
    if value.tzinfo is None:
        raise JobArgumentError(
            f"{name}: {value} has no time zone, so it would be another moment in a session of another zone: give it one, as in"
            " datetime.now(UTC)"
        )
    return value


def _without_zone(name: str, value: time) -> time:
    if value.tzinfo is not None:
        raise JobArgumentError(f"{name}: {value} has a time zone, which its column has not: use a datetime")
    return value


_ZONES: dict[type, Callable[[str, Any], Any]] = {datetime: _with_zone, time: _without_zone}


def _default(name: str, field: FieldInfo, to_database: Callable[[Any], Any] | None) -> sql.Composable | None:
    """Only constants become column defaults; other factories are called by Python, once per job."""
    if field.default_factory is list or field.default_factory is dict or isinstance(field.default_factory, CopyOf):
        value: Any = typing.cast("Callable[[], Any]", field.default_factory)()
    elif field.default is PydanticUndefined or field.default_factory is not None:
        return None
    else:
        value = field.default
    if value is None:
        return None
    try:
        return sql.Literal(to_database(value) if to_database else value)
    except JobArgumentError as error:
        raise JobDefinitionError(f"the default of field {error}") from error


def _checks(
    column: sql.Identifier, annotation: Any, metadata: list[Any], column_type: ColumnType
) -> list[sql.Composed]:
    checks = []
    values = _allowed_values(annotation)
    if values:
        checks.append(sql.SQL("{} IN ({})").format(column, sql.SQL(", ").join(map(sql.Literal, values))))
    length = {"text": "char_length", "bytea": "octet_length", "jsonb": "jsonb_array_length"}.get(column_type.name)
    for item in metadata:
        checks += _bounds(column, item)
        if length is not None and not (
            column_type is _JSONB and get_origin(annotation) not in {list, set, tuple, frozenset}
        ):
            checks += _lengths(sql.SQL(typing.cast("Any", length)), column, item)
        if getattr(item, "pattern", None) is not None:
            pattern = getattr(item.pattern, "pattern", item.pattern)
            checks.append(sql.SQL("{} ~ {}").format(column, sql.Literal(pattern)))
    return checks


def _allowed_values(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def _bounds(column: sql.Identifier, item: Any) -> list[sql.Composed]:
    found = ((operator, getattr(item, name, None)) for name, operator in _BOUNDS)
    return [
        sql.SQL("{} {} {}").format(column, sql.SQL(typing.cast("Any", operator)), sql.Literal(bound))
        for operator, bound in found
        if bound is not None
    ]


def _lengths(length: sql.SQL, column: sql.Identifier, item: Any) -> list[sql.Composed]:
    limits = (("min_length", ">="), ("max_length", "<="))
    return [
        sql.SQL("{}({}) {} {}").format(
            length, column, sql.SQL(typing.cast("Any", operator)), sql.Literal(getattr(item, name))
        )
        for name, operator in limits
        if getattr(item, name, None) is not None
    ]
