"""Whatever others send is read or refused, and never an error of another kind. Frames and notes have such tests of their own."""

from __future__ import annotations

import contextlib
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, cast
from urllib.parse import quote
from uuid import UUID

import psycopg
from hypothesis import assume, example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cluster import Job
from cluster.coordinator.doorbell import _text, parse_numbers
from cluster.errors import ClusterError
from cluster.frames import COLUMNS, RawRow
from cluster.job import definition
from cluster.settings import load_settings, mask_url
from cluster.worker.perform import Attempt, Performer, Verdict
from cluster.worker.runner import Columns, Runner

VARIABLES = ("CLUSTER_QUEUES", "CLUSTER_PROCESSES", "CLUSTER_LEASE", "CLUSTER_HTTP_PORT", "CLUSTER_DATABASE_URL")


@given(st.binary() | st.from_regex(rb"[0-9 +-]{0,40}", fullmatch=True))
def test_any_notification_is_one_or_two_numbers_or_nothing(raw: bytes) -> None:
    numbers = parse_numbers(_text(raw))
    assert len(numbers) <= 2
    assert all(0 <= number < 2**63 for number in numbers)


@given(st.dictionaries(st.sampled_from(VARIABLES), st.text()))
def test_any_environment_is_taken_or_refused(environ: dict[str, str]) -> None:
    with contextlib.suppress(ClusterError):
        load_settings(environ).describe()


# --- connection strings ---

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\0"), min_size=6, max_size=20)


@example("postgres://%80")  # bytes that are no text
@given(st.text() | st.from_regex(r"(postgres(ql)?://)?[a-z:@/?&=%0-9' \\\\]{0,60}", fullmatch=True))
def test_no_password_of_any_connection_string_is_shown(text: str) -> None:
    shown = mask_url(text)
    with contextlib.suppress(psycopg.ProgrammingError, UnicodeError):
        given = conninfo_to_dict(text)
        secrets = [str(value) for name, value in given.items() if "password" in name and value]
        others = text.partition("://")[0] + "".join(
            f"{name}={value}" for name, value in given.items() if "password" not in name
        )
        assert not any(len(secret) > 5 and secret in shown and secret not in others for secret in secrets)


@given(WORDS, SECRET, WORDS, st.sampled_from(["password", "sslpassword", "oauth_client_secret"]))
def test_a_password_is_not_shown_however_the_connection_string_is_written(
    user: str, secret: str, database: str, keyword: str
) -> None:
    assume(
        secret not in user + database + "postgresql://:***@h/?application_name=x&sslpassword=oauth_client_secret"
        and "*" not in secret
    )
    for escaped in (quote(secret, safe=""), quote(secret)):
        head = f"postgresql://{quote(user, safe='')}"
        for url in (
            f"{head}:{escaped}@h/{quote(database, safe='')}",
            f"{head}@h/?{keyword}={escaped}&application_name=x",
        ):
            shown = mask_url(url)
            assert secret not in shown
            assert escaped not in shown
    with contextlib.suppress(psycopg.ProgrammingError):
        conninfo = make_conninfo("", user=user, dbname=database, **{keyword: secret})
        assert secret not in mask_url(conninfo)


# --- rows ---


class WideJob(Job):
    number: int
    ratio: float
    text: str
    is_big: bool
    price: Decimal
    at: datetime
    day: date
    hour: time
    pause: timedelta
    key: UUID
    raw: bytes
    size: Literal["s", "m"]
    words: list[str]

    async def perform(self) -> None: ...


WIDE = Performer.of(WideJob)
OIDS = (20, 701, 25, 16, 1700, 1184, 1082, 1083, 1186, 2950, 17, 25, 3802)
HEAD: RawRow = [
    b"\0" * 8,
    b"\0\0\0\1",
    b"\0\0\0\0",
    b"\0" * 8,
    b"\0" * 8,
    b"default",
    b"\0\x32",
    b"\0" * 8,
    b"\0" * 8,
    None,
    None,
]
HEAD_OIDS = (20, 23, 23, 1184, 701, 25, 21, 1184, 1184, 1184, 25)


@given(st.lists(st.none() | st.binary(max_size=24), min_size=len(OIDS), max_size=len(OIDS)))
def test_any_bytes_of_a_row_make_an_attempt_or_a_verdict_on_that_row(values: list[bytes | None]) -> None:
    assert len(HEAD) == COLUMNS
    assert len(definition(WideJob).column_names) == len(OIDS)
    columns = Columns((*HEAD_OIDS, *OIDS), len(OIDS))
    made = Runner._attempt(cast("Any", None), WIDE, 1, columns, [*HEAD, *values])
    assert isinstance(made, (Attempt, Verdict))
    if isinstance(made, Verdict):
        assert made.status == "failed"
