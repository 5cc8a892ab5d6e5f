"""What an error of Postgres is about: its code, where it was raised, and whether the connection lives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from cluster.coordinator.causes import Cause, cause_of


class Told(psycopg.Error):
    """An error as the server would have sent it."""

    def __init__(self, code: str, *, inside: bool = False, severity: str = "ERROR", function: str = "") -> None:
        super().__init__(code)
        self.sqlstate = code
        self._fields = {
            "context": "PL/pgSQL function f() line 3 at RAISE" if inside else None, "internal_query": None,
            "severity_nonlocalized": severity, "source_function": function,
        }  # fmt: skip

    @property
    def diag(self) -> Any:
        return SimpleNamespace(**self._fields)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("54000", Cause.ROW), ("55000", Cause.TABLE), ("57014", Cause.PASSING), ("53100", Cause.PASSING), ("53200", Cause.PASSING),
        ("40001", Cause.PASSING), ("40P01", Cause.PASSING), ("55P03", Cause.LOCKED), ("23505", Cause.TAKEN), ("23P01", Cause.TAKEN),
        ("23514", Cause.ROW), ("22008", Cause.ROW), ("P0001", Cause.ROW), ("42P01", Cause.UNDEFINED), ("42703", Cause.UNDEFINED),
        ("42501", Cause.DENIED), ("25006", Cause.LOST), ("XX000", Cause.TABLE), ("57P01", Cause.PASSING), ("08006", Cause.PASSING),
    ],
)  # fmt: skip
def test_a_code_tells_whose_matter_it_is(code: str, cause: Cause) -> None:
    assert cause_of(Told(code)) is cause


@pytest.mark.parametrize("code", ["42P01", "42703", "42501", "25006", "0A000", "55000"])
def test_what_a_users_trigger_raises_is_not_taken_for_our_own_statement(code: str) -> None:
    assert cause_of(Told(code, inside=True, function="RevalidateCachedQuery")) is Cause.TABLE


@pytest.mark.parametrize("code", ["08006", "57P01", "57P03", "53000", "40001"])
def test_no_code_that_a_trigger_raises_loses_the_session(code: str) -> None:
    assert cause_of(Told(code, inside=True)) is Cause.PASSING


@pytest.mark.parametrize("code", ["23505", "57P01", "XX000"])
def test_a_connection_that_is_gone_or_a_fatal_error_loses_the_session(code: str) -> None:
    assert cause_of(Told(code), alive=False) is Cause.LOST
    assert cause_of(Told(code, severity="FATAL")) is Cause.LOST


def test_a_stale_plan_is_told_by_where_the_server_found_it() -> None:
    assert cause_of(Told("0A000", function="RevalidateCachedQuery")) is Cause.STALE_PLAN
    assert cause_of(Told("0A000")) is Cause.TABLE


def test_what_was_cancelled_is_not_what_a_trigger_raises_with_that_code() -> None:
    assert cause_of(Told("57014", function="ProcessInterrupts")) is Cause.SLOW
    assert cause_of(Told("57014", function="ProcessInterrupts", inside=True)) is Cause.SLOW
    assert cause_of(Told("57014", function="exec_stmt_raise", inside=True)) is Cause.PASSING


def test_the_drivers_own_errors_are_the_connections_or_a_values() -> None:
    assert cause_of(psycopg.OperationalError("gone")) is Cause.LOST
    assert cause_of(psycopg.InterfaceError("closed")) is Cause.LOST
    assert cause_of(psycopg.DataError("timestamp too large (after year 10K)")) is Cause.TABLE
