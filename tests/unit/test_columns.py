"""From fields to columns."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest

from cluster import Job, References
from cluster.columns import Column
from cluster.errors import JobArgumentError, JobDefinitionError
from cluster.job import definition


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Address(pydantic.BaseModel):
    street: str


def column(annotation: Any, **field: Any) -> Column:
    body: dict[str, Any] = {"__annotations__": {"value": annotation}, "perform": lambda self: None} | field
    made = type("MadeJob", (Job,), body)
    return definition(made).columns[0]


def ddl(annotation: Any, **field: Any) -> str:
    return column(annotation, **field).definition().as_string().removeprefix('"value" ')


def sent(annotation: Any, given: Any) -> Any:
    made: Any = type("MadeJob", (Job,), {"__annotations__": {"value": annotation}, "perform": lambda self: None})
    return definition(made).columns[0].value(made(value=given).value)


@pytest.mark.parametrize(
    ("annotation", "type_name"),
    [
        (bool, "boolean"),
        (int, "bigint"),
        (float, "double precision"),
        (str, "text"),
        (Decimal, "numeric"),
        (datetime, "timestamp with time zone"),
        (date, "date"),
        (time, "time without time zone"),
        (timedelta, "interval"),
        (uuid.UUID, "uuid"),
        (bytes, "bytea"),
        (list[int], "jsonb"),
        (dict[str, int], "jsonb"),
        (Address, "jsonb"),
        (int | str, "jsonb"),
        (Path, "text"),
        (pydantic.AnyUrl, "text"),
        (Annotated[Decimal, pydantic.Field(max_digits=8, decimal_places=2)], "numeric(8, 2)"),
        (Annotated[Decimal, pydantic.Field(max_digits=8)], "numeric(8, 0)"),
    ],
)
def test_a_type_has_its_column_type(annotation: Any, type_name: str) -> None:
    assert ddl(annotation) == f"{type_name} NOT NULL"


@pytest.mark.parametrize("annotation", [int | None, Optional[int], Annotated[int | None, "x"]])  # noqa: UP045
def test_optional_means_nullable(annotation: Any) -> None:
    assert ddl(annotation) == "bigint"


def test_optional_and_annotated_nest_in_any_order() -> None:
    inner = Annotated[int, pydantic.Field(ge=1)] | None
    assert ddl(inner) == 'bigint CHECK ("value" >= 1)'
    assert ddl(Annotated[int | None, pydantic.Field(ge=1)]) == 'bigint CHECK ("value" >= 1)'


@pytest.mark.parametrize(
    ("annotation", "checks"),
    [
        (Annotated[int, pydantic.Field(ge=1, le=9)], 'CHECK ("value" >= 1) CHECK ("value" <= 9)'),
        (Annotated[int, pydantic.Field(gt=1, lt=9)], 'CHECK ("value" > 1) CHECK ("value" < 9)'),
        (Annotated[str, pydantic.Field(max_length=5)], 'CHECK (char_length("value") <= 5)'),
        (Annotated[str, pydantic.Field(min_length=1)], 'CHECK (char_length("value") >= 1)'),
        (Annotated[bytes, pydantic.Field(max_length=5)], 'CHECK (octet_length("value") <= 5)'),
        (Annotated[list[int], pydantic.Field(max_length=5)], 'CHECK (jsonb_array_length("value") <= 5)'),
        (Annotated[str, pydantic.Field(pattern="^a'b$")], "CHECK (\"value\" ~ '^a''b$')"),
        (Literal["a", "b"], "CHECK (\"value\" IN ('a', 'b'))"),
        (Colour, "CHECK (\"value\" IN ('red', 'blue'))"),
        (Level, 'CHECK ("value" IN (1, 2))'),
    ],
)
def test_constraints_become_checks(annotation: Any, checks: str) -> None:
    assert ddl(annotation).partition("NOT NULL ")[2] == checks


@pytest.mark.parametrize(
    ("annotation", "default", "clause"),
    [
        (int, 3, "DEFAULT 3"),
        (str, "it's", "DEFAULT 'it''s'"),
        (bool, False, "DEFAULT false"),
        (Colour, Colour.RED, "DEFAULT 'red'"),
        (list[int], [1, 2], "DEFAULT '[1, 2]'::jsonb"),
        (timedelta, timedelta(minutes=1), "DEFAULT '0:01:00'::interval"),
        (int, pydantic.Field(default=4), "DEFAULT 4"),
        (list[int], pydantic.Field(default_factory=list), "DEFAULT '[]'::jsonb"),
    ],
)
def test_constants_become_column_defaults(annotation: Any, default: Any, clause: str) -> None:
    assert clause in ddl(annotation, value=default)


def test_other_factories_are_called_by_python() -> None:
    assert column(uuid.UUID, value=pydantic.Field(default_factory=uuid.uuid4)).default is None


def test_a_default_of_none_is_none() -> None:
    assert ddl(int | None, value=None) == "bigint"


def test_references_become_a_foreign_key() -> None:
    assert (
        ddl(Annotated[int, References("customers.id", on_delete="cascade")])
        == 'bigint NOT NULL REFERENCES "customers" ("id") ON DELETE CASCADE'
    )
    assert (
        ddl(Annotated[int, References("shop.customers.id")])
        == 'bigint NOT NULL REFERENCES "shop"."customers" ("id") ON DELETE NO ACTION'
    )


@pytest.mark.parametrize("target", ["customers", "customers.", "a.b.c.d", ".id", ""])
def test_references_need_a_table_and_a_column(target: str) -> None:
    with pytest.raises(JobDefinitionError, match=r'References takes "table\.column"'):
        References(target)


def test_an_unknown_on_delete_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match="cascade, restrict, set null"):
        References("customers.id", on_delete="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("annotation", [Literal["a", 1], Literal[1.5], Literal[True]])
def test_a_literal_of_mixed_kinds_is_refused(annotation: Any) -> None:
    with pytest.raises(JobDefinitionError, match=r"MadeJob: field value: .*must all be str, or all be int"):
        column(annotation)


def test_a_type_without_json_form_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match="no column type"):
        column(Callable[[], int])


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (int, 3, 3),
        (Colour, Colour.BLUE, "blue"),
        (Level, 2, 2),
        (Literal["a"], "a", "a"),
        (Path, "/a/b", "/a/b"),
        (pydantic.AnyUrl, "https://example.com/a", "https://example.com/a"),
        (int | None, None, None),
        (Colour | None, None, None),
    ],
)
def test_values_are_sent_in_their_columns_form(annotation: Any, given: Any, value: Any) -> None:
    assert sent(annotation, given) == value


def test_models_and_collections_are_sent_as_json() -> None:
    assert sent(Address, {"street": "a"}).obj == {"street": "a"}
    assert sent(list[date], [date(2026, 1, 2)]).obj == ["2026-01-02"]
    assert sent(set[int], {1}).obj == [1]


# --- what would not come back ---

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - what is refused


class Aliased(pydantic.BaseModel):
    street: str = pydantic.Field(alias="strasse")


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    width: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width * self.width


class Forgetful(pydantic.BaseModel):
    street: str
    note: str = pydantic.Field(default="", exclude=True)


class Guarded(pydantic.BaseModel):
    password: pydantic.SecretStr


class OneWay(pydantic.BaseModel):
    names: list[str]

    @pydantic.field_serializer("names")
    def joined(self, names: list[str]) -> str:
        return ",".join(names)


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (Address, Address(street="x")), (Aliased, Aliased(strasse="x")), (set[int], {1, 2}), (tuple[int, str], (1, "a")),
        (dict[str, datetime], {"a": NAIVE}), (Forgetful, Forgetful(street="x")), (Path, Path("/tmp")),
    ],
)  # fmt: skip
def test_values_that_come_back_are_sent(annotation: Any, given: Any) -> None:
    assert column(annotation).value(given) is not None


@pytest.mark.parametrize(
    ("annotation", "given", "said"),
    [
        (Computed, Computed(width=2), "would not fit its own row: Extra inputs are not permitted"),
        (Forgetful, Forgetful(street="x", note="lost"), "its JSON form does not hold all of it"),
        (Guarded, Guarded(password=pydantic.SecretStr("x")), "its JSON form does not hold all of it"),
        (OneWay, OneWay(names=["a"]), "would not fit its own row"),
        (datetime, NAIVE, "has no time zone"),
        (datetime | None, NAIVE, "has no time zone"),
        (time, time(12, tzinfo=UTC), "has a time zone"),
    ],
)
def test_values_that_would_not_come_back_are_refused(annotation: Any, given: Any, said: str) -> None:
    with pytest.raises(JobArgumentError, match=rf"^value: .*{said}"):
        column(annotation).value(given)


@pytest.mark.parametrize("annotation", [pydantic.SecretStr, pydantic.SecretBytes, pydantic.SecretStr | None])
def test_a_secret_is_refused_when_defined(annotation: Any) -> None:
    with pytest.raises(JobDefinitionError, match="field value: a secret would arrive as asterisks"):
        column(annotation)


@pytest.mark.parametrize("alias", ["alias", "validation_alias", "serialization_alias"])
def test_a_field_with_an_alias_is_refused_when_defined(alias: str) -> None:
    with pytest.raises(JobDefinitionError, match="field value: no alias, please"):
        column(str, value=pydantic.Field(**{alias: "other"}))  # type: ignore[call-overload]


def test_a_default_that_would_not_come_back_is_refused_when_defined() -> None:
    with pytest.raises(JobDefinitionError, match=r"the default of field value: .* has no time zone"):
        column(datetime, value=NAIVE)
