"""The only reader of the environment: what `CLUSTER_*` variables mean and which values a node can run with.

`load_settings` is called once per command by `cluster.cli`; everything else is handed the frozen result.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from cluster.container import LEAST_WORKER_MEMORY, worker_processes, worker_share
from cluster.errors import SettingsError

PREFIX = "CLUSTER_"
SECRETS = frozenset({"database_url", "direct_database_url", "dashboard_password", "dashboard_secret"})
LEAST_SECRET = 16
"""Characters."""
LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")

_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+) ?(ms|[smhd]|)", re.ASCII)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# What Kubernetes injects into every pod for a service whose name starts with `cluster`.
_SERVICE_NAME = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")

# Where pydantic's own words are no help to an operator.
_SIZE = "a size looks like 800MiB or 1.5GB"
_MESSAGES = {
    "int_parsing": "should be a whole number", "too_short": "should name at least one", "byte_size": _SIZE, "byte_size_unit": _SIZE,
}  # fmt: skip

# A connection string that libpq can't parse, or with bytes that are no text.
_UNREADABLE = (psycopg.ProgrammingError, UnicodeError)

Source = Literal["environment", "file", "default", "flag"]


class Pod(NamedTuple):
    """Of Kubernetes, in which this process runs, and where the API server is."""

    name: str
    namespace: str
    api_host: str
    api_port: int


def _duration(value: object) -> timedelta:
    if not isinstance(value, timedelta):
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            raise ValueError("a duration looks like 30, 2.5, 500ms, 30s, 5m, 1h or 2d")
        try:
            value = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
        except OverflowError:
            raise ValueError("a duration this long can't be kept") from None
    if value <= timedelta(0):
        raise ValueError("a duration should be longer than 0s")
    return value


def _comma_separated(value: object) -> object:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _modules(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not _MODULE.fullmatch(name):
            raise ValueError(f"{name!r} is not a module name; write it as in an import, such as jobs.email")
    return value


def _libpq_url(value: str) -> str:
    try:
        conninfo_to_dict(value)
    except _UNREADABLE:
        # libpq's own message may quote a part of the password.
        raise ValueError("should be a libpq URI such as postgresql://user:password@host:5432/app") from None
    return value


def _path_prefix(value: str) -> str:
    if not re.fullmatch(r"/[^\s?#]*", value):
        raise ValueError("should be a path that starts with a slash, such as /jobs")
    return value.rstrip("/")


def _dashboard_auth(value: str) -> str:
    module, _, attribute = value.partition(":")
    if value in ("basic", "header", "none") or (_MODULE.fullmatch(module) and attribute.isidentifier()):
        return value
    raise ValueError("should be basic, header, none or a function of yours such as app.auth:authenticate")


def _long_enough(value: str) -> str:
    if 0 < len(value) < LEAST_SECRET:
        raise ValueError(f"should have {LEAST_SECRET} characters or more, such as those of: openssl rand -hex 32")
    return value


def _header(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z0-9-]+", value):
        raise ValueError("should be the name of a header, such as X-Forwarded-User")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _default_processes() -> int:
    return worker_processes()


def _default_worker_memory(given: dict[str, Any]) -> ByteSize | None:
    share = worker_share(given["processes"]) if "processes" in given else None
    return ByteSize(share) if share is not None else None


def _default_recycle_memory(given: dict[str, Any]) -> ByteSize | None:
    share = _default_worker_memory(given)
    return ByteSize(share * 4 // 5) if share is not None else None


def _default_jobs() -> tuple[str, ...]:
    return ("jobs",) if Path("jobs/__init__.py").is_file() else ()


def _default_log_format() -> Literal["console", "json"]:
    return "console" if sys.stderr is not None and sys.stderr.isatty() else "json"


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
DatabaseUrl = Annotated[str, AfterValidator(_libpq_url), Field(repr=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
LogFormat = Annotated[Literal["console", "json"], BeforeValidator(_lower)]
LogJobs = Annotated[Literal["failed", "all"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)]


class Settings(BaseSettings):
    """What one node, or one command, runs with. Building it reads no environment: `load_settings` does."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    database_url: DatabaseUrl = ""
    """Postgres, as a libpq URI; several hosts and `target_session_attrs` work, and so does PgBouncer.
    Default: `DATABASE_URL`, else empty, and libpq reads `PGHOST` and its other variables. A secret."""

    direct_database_url: DatabaseUrl = Field(default_factory=lambda given: given.get("database_url", ""))
    """The same database without a pooler between, for LISTEN and session locks. Default: the database URL.
    A secret."""

    jobs: Annotated[Names, AfterValidator(_modules)] = Field(default_factory=_default_jobs)
    """Modules or packages to import jobs from, comma-separated.
    Default: the package `jobs` of the working directory, if there is one."""

    queues: Annotated[Names, Field(min_length=1)] = ("*",)
    """Queues this node works on, comma-separated; `*` means every queue. Default: `*`."""

    processes: int = Field(default_factory=_default_processes, ge=1)
    """Worker processes of this node, at least 1; one plain `def perform` runs in each at a time.
    Default: the CPUs available to the container, and one for each 128 MiB of its memory beyond the first at most."""

    concurrency: int = Field(default=16, ge=1)
    """Async jobs at once in one worker process, at least 1; the node's slots are processes x concurrency.
    Default: 16."""

    heartbeat_interval: Duration = timedelta(seconds=5)
    """How often a node says that it lives and renews its lease; at most a third of the lease. Default: 5s."""

    lease: Duration = timedelta(seconds=30)
    """How long a silent node keeps its jobs before others rescue them; at least three heartbeat intervals.
    Default: 30s."""

    poll_interval: Duration = timedelta(seconds=60)
    """How often a node looks for jobs without being rung; only a net below LISTEN/NOTIFY. Default: 60s."""

    shutdown_timeout: Duration = timedelta(seconds=25)
    """How long running jobs may finish after SIGTERM before they are stopped and released; keep it below what
    the platform grants before SIGKILL (Kubernetes: 30s). Default: 25s."""

    http_host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from outside the pod
    """Address of the node's metrics and probes; `::` is IPv6 and IPv4; a path is that of a Unix socket.
    Default: 0.0.0.0, all of IPv4."""

    http_port: Port = 9464
    """Port of the node's metrics and probes; 0 turns them off. Default: 9464."""

    dashboard_host: str = "127.0.0.1"
    """Address of the dashboard. Default: 127.0.0.1."""

    dashboard_port: Port = 8080
    """Port of the dashboard; 0 takes a free one. Default: 8080."""

    dashboard_prefix: Annotated[str, AfterValidator(_path_prefix)] = "/jobs"
    """Path below which the dashboard lives; starts with a slash; `/`, the root, is kept as an empty string.
    Default: /jobs."""

    dashboard_auth: Annotated[str, AfterValidator(_dashboard_auth)] = "basic"
    """Who may use the dashboard: `basic` (user and password), `header` (whom a proxy names), `none` (on loopback
    only) or your own function, such as `app.auth:authenticate`. Default: basic."""

    dashboard_user: str = ""
    """User name for `basic`; the dashboard refuses to start without. Default: none."""

    dashboard_password: str = Field(default="", repr=False)
    """Password for `basic`; the dashboard refuses to start without. Default: none. A secret."""

    dashboard_secret: Annotated[str, AfterValidator(_long_enough)] = Field(default="", repr=False)
    """With which the dashboard signs its forms: the same in all processes that serve it, 16 characters or more.
    Default: none, and each process takes its own forms only. A secret."""

    dashboard_proxies: str = ""
    """Addresses and networks of proxies before the dashboard, comma-separated: only their X-Forwarded-Prefix,
    X-Forwarded-For and user header are believed. Default: none."""

    dashboard_user_header: Annotated[str, AfterValidator(_header)] = "X-Forwarded-User"
    """Header in which a proxy names the user, for `header`. Default: X-Forwarded-User."""

    dashboard_groups_header: Annotated[str, AfterValidator(_header)] = ""
    """Header in which a proxy names the user's groups, comma-separated, for `header`. Default: none."""

    dashboard_roles: Names = ()
    """Roles for `header`: by user (`ann=admin`), by group (`@ops=operator`) and for all others (`*=viewer`), who are
    kept out without it. Default: none, and all are viewers."""

    recycle_jobs: int | None = Field(default=None, ge=1)
    """Jobs after which a worker process is replaced; like the other two, between jobs, one process at a time.
    Default: none."""

    recycle_age: Duration | None = None
    """Age at which a worker process is replaced. Default: none."""

    recycle_memory: ByteSize | None = Field(default_factory=_default_recycle_memory, ge=2**20)
    """Resident memory, such as `800MiB`, above which a worker process is replaced.
    Default: four fifths of its share of the container's memory, else none."""

    worker_memory: ByteSize | None = Field(default_factory=_default_worker_memory, ge=LEAST_WORKER_MEMORY)
    """Resident memory, at least 128MiB, that a worker process may have: above it, the job that it performs fails as if it had
    crashed. Default: its share of the container's memory, after 128 MiB for the coordinator; else none."""

    log_format: LogFormat = Field(default_factory=_default_log_format)
    """`console` for people or `json`, one object per line. Default: console on a terminal, else json."""

    log_level: LogLevel = "info"
    """The least important level that is still logged. Default: info."""

    log_jobs: LogJobs = "failed"
    """Which attempts get a log line when they end: those that `failed`, or `all`; of one kind, five a minute.
    Default: failed."""

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)
    _files: dict[str, Path] = PrivateAttr(default_factory=dict)
    """Where a secret stands that was read from a file."""
    _strangers: tuple[str, ...] = PrivateAttr(default=())
    _libpq_configured: bool = PrivateAttr(default=False)
    _pod: Pod | None = PrivateAttr(default=None)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: `load_settings` knows secrets in files, injected variables and who set what."""
        return (init_settings,)

    @model_validator(mode="after")
    def _relations(self) -> Self:
        least = 3 * self.heartbeat_interval  # a node may miss two heartbeats and still hold its claims
        if self.lease < least:
            raise ValueError(
                f"CLUSTER_LEASE={_shown(self.lease)}: should be at least {_shown(least)}, three times "
                f"CLUSTER_HEARTBEAT_INTERVAL={_shown(self.heartbeat_interval)}"
            )
        return self

    @property
    def database_configured(self) -> bool:
        """Whether anybody said which Postgres to use: a URL, or libpq's own variables."""
        return bool(self.database_url) or self._libpq_configured

    @property
    def strangers(self) -> tuple[str, ...]:
        """Variables of the environment that begin with CLUSTER_, and are neither settings nor close to one."""
        return self._strangers

    @property
    def pod(self) -> Pod | None:
        """Named by the manifests in `POD_NAME` and `POD_NAMESPACE`. None: this is none, or it was not named."""
        return self._pod

    def read_database_url(self) -> str:
        """The URL, read anew if it stands in a file: passwords change. The last one that was read if the file can't be."""
        return self._read("database_url")

    def read_direct_database_url(self) -> str:
        """As read_database_url."""
        return self._read("direct_database_url" if "direct_database_url" in self._sources else "database_url")

    def _read(self, name: str) -> str:
        path = self._files.get(name)
        if path is not None:
            with contextlib.suppress(SettingsError, ValueError):  # it may be half written
                return _libpq_url(_secret(path, _variable(name)))
        last: str = getattr(self, name)
        return last

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Variable, value (passwords as `***`), source and meaning of every setting, in the class's order."""
        return [
            (
                _variable(name),
                _shown_setting(name, getattr(self, name)),
                self._sources.get(name, "default"),
                " ".join((field.description or "").split()),
            )
            for name, field in type(self).model_fields.items()
        ]


class _Given(NamedTuple):
    """One value as somebody gave it; `label` is how an error message calls the place. file: in which it stands."""

    value: object
    source: Source
    label: str
    file: Path | None = None


def load_settings(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from the environment (`os.environ` if None) and the command line's flags (None = not given).

    A flag beats `CLUSTER_X` or `CLUSTER_X_FILE`, which beat a file in `$CREDENTIALS_DIRECTORY`, which beats
    `DATABASE_URL`. All problems are raised as one `SettingsError` of one line.
    """
    environ = os.environ if environ is None else environ
    if unknown := overrides.keys() - Settings.model_fields.keys():
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    problems, strangers = _unknown_variables(environ)
    given: dict[str, _Given] = {}
    for name in Settings.model_fields:
        try:
            found = _given(name, environ, overrides)
        except SettingsError as error:
            problems.append(str(error))
        else:
            given |= {name: found} if found else {}
    # Any: pydantic checks the values.
    values: dict[str, Any] = {name: found.value for name, found in given.items()}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_problem(dict(detail), given) for detail in error.errors()]
    if problems:
        raise SettingsError("; ".join(problem for problem in problems if problem))
    settings._sources.update({name: found.source for name, found in given.items()})
    settings._files.update({name: found.file for name, found in given.items() if found.file is not None})
    settings._strangers = strangers
    settings._libpq_configured = any(environ.get(name) for name in LIBPQ_VARIABLES)
    settings._pod = _pod(environ)
    return settings


def database_url() -> str:
    """That of the environment alone, whatever else is set there: an application that enqueues needs no more."""
    about_database = f"{PREFIX}DATABASE_URL"
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) or name.startswith(about_database)
    }
    return load_settings(own).database_url


def dashboard_settings() -> Settings:
    """Those of the environment that are the dashboard's, whatever else is set there: it may be a part of an application."""
    own = (f"{PREFIX}DASHBOARD_", "CREDENTIALS_DIRECTORY")
    return load_settings({name: value for name, value in os.environ.items() if name.startswith(own)})


def mask_url(url: str) -> str:
    """The URL or conninfo string with every secret in it as `***`.

    As it was written, if libpq reads the result like that; else in libpq's own notation, or nothing of it.
    """
    try:
        masked = {key: "***" if _is_secret(key) else value for key, value in conninfo_to_dict(url).items()}
        pretty = _mask_as_written(url)
        with contextlib.suppress(*_UNREADABLE):
            if conninfo_to_dict(pretty) == masked:
                return pretty
        return make_conninfo("", **masked)
    except _UNREADABLE:
        return "***"


def _is_secret(keyword: str) -> bool:
    return any(part in keyword for part in ("password", "secret", "scram_"))


def _mask_as_written(url: str) -> str:
    if "://" in url:
        url = re.sub(r"(://[^:/]*:).*@", r"\1***@", url)
        return re.sub(r"(?i)([?&]\w*(?:password|secret)=)[^&]*", r"\1***", url)
    return re.sub(r"(?i)(\w*(?:password|secret)\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])*)", r"\1***", url)


def _pod(environ: Mapping[str, str]) -> Pod | None:
    """The address of the API server is injected into every pod."""
    names = ("POD_NAME", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    name, namespace, host, port = (environ.get(variable, "").strip() for variable in names)
    return Pod(name, namespace, host, int(port)) if name and namespace and host and port.isdecimal() else None


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _given(name: str, environ: Mapping[str, str], overrides: Mapping[str, object]) -> _Given | None:
    variable = _variable(name)
    if overrides.get(name) is not None:
        return _Given(overrides[name], "flag", f"{variable} (from a flag)")
    if name == "direct_database_url" and overrides.get("database_url") is not None:
        return None  # or a flag would leave LISTEN and the locks on the environment's database
    if name in SECRETS:
        return _given_secret(name, environ)
    value = _value(environ, variable)
    return _Given(value, "environment", variable) if value else None


def _given_secret(name: str, environ: Mapping[str, str]) -> _Given | None:
    variable = _variable(name)
    value, named_file = _value(environ, variable), _value(environ, f"{variable}_FILE")
    if value and named_file:
        raise SettingsError(f"{variable} and {variable}_FILE are both set: keep one of them")
    if value:
        return _Given(value, "environment", variable)
    if named_file:
        path = Path(named_file)
        return _Given(_secret(path, f"{variable}_FILE"), "file", f"{variable}_FILE={named_file!r}", path)
    if found := _credential(variable, environ):
        return _Given(_secret(found, variable), "file", f"{variable} (from {str(found)!r})", found)
    if name == "database_url" and (value := _value(environ, "DATABASE_URL")):
        return _Given(value, "environment", "DATABASE_URL")
    return None


def _credential(variable: str, environ: Mapping[str, str]) -> Path | None:
    folder = _value(environ, "CREDENTIALS_DIRECTORY")
    for name in (variable, variable.lower()) if folder else ():
        path = Path(str(folder), name)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # not for us to see: reading it says why
        return path
    return None


def _value(environ: Mapping[str, str], variable: str) -> str | None:
    """The trimmed value; None if it is empty or was put there by Kubernetes for a service `cluster-http`."""
    value = environ.get(variable, "").strip()
    return None if not value or _is_injected(variable, value) else value


def _is_injected(variable: str, value: str) -> bool:
    address = variable.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value)
    return bool(address or _SERVICE_NAME.fullmatch(variable))


def _secret(path: Path, variable: str) -> str:
    try:
        content = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SettingsError(f"{variable}: can't read {str(path)!r}: {reason}") from error
    if not content:
        raise SettingsError(f"{variable}: {str(path)!r} is empty; it should hold the secret")
    return content


def _unknown_variables(environ: Mapping[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """What is wrong with those that are close to a setting, and the names of the others, which may be somebody else's."""
    known = {_variable(name) for name in Settings.model_fields}
    known |= {f"{_variable(name)}_FILE" for name in SECRETS}
    by_suffix = {name.removeprefix(PREFIX): name for name in known}
    problems, strangers = [], []
    for variable in sorted(environ):
        if variable in known or not variable.startswith(PREFIX) or not _value(environ, variable):
            continue
        close = get_close_matches(variable.removeprefix(PREFIX), by_suffix, n=1)
        if close:
            problems.append(f"{variable} is not a setting: did you mean {by_suffix[close[0]]}?")
        else:
            strangers.append(variable)
    return problems, tuple(strangers)


def _problem(detail: dict[str, Any], given: Mapping[str, _Given]) -> str:
    """One of pydantic's errors (`ErrorDetails`): variable, value and what is right; "" for a mere echo."""
    if detail["type"] == "default_factory_not_called":
        return ""
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else str(detail["msg"])
    message = _MESSAGES.get(detail["type"], message.replace("Input should be", "should be"))
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    label = given[name].label if name in given else _variable(name)
    if name in SECRETS:
        return f"{label}: {message}"
    value = given[name].value if name in given else detail["input"]
    return f"{label}={value!r}: {message}"


def _shown_setting(name: str, value: object) -> str:
    if name in ("dashboard_password", "dashboard_secret"):
        return "***" if value else ""
    return mask_url(str(value)) if name in SECRETS else _shown(value)


def _shown(value: object) -> str:
    match value:
        case timedelta():
            return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"
        case tuple():
            return ",".join(value)
        case ByteSize():
            return f"{value // 2**20}MiB"
        case None:
            return ""
    return str(value)
