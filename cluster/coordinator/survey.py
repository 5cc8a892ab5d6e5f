"""One question to every job table, with or without a class on this node: what is wrong with one is its own matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from psycopg import AsyncConnection

from cluster.coordinator import pipeline
from cluster.coordinator.causes import WHY_HELD, brief, cause_of
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import is_lost
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold

MOST_TABLES = 50
"""Asked in one round trip, after which others may use the session."""


class Held(Protocol):
    """A table, and whether it can be asked."""

    hold: Hold


Table = TypeVar("Table", bound=Held)


async def ask_each(session: Session, questions: Mapping[Table, Command]) -> dict[Table, list[Any]]:
    """The rows of each table's answer. Each is a transaction of its own; a table that refuses is left out, and held.

    TransientDatabaseError: the session is lost.
    """
    tables = list(questions)
    rows: dict[Table, list[Any]] = {}
    for start in range(0, len(tables), MOST_TABLES):
        asked = tables[start : start + MOST_TABLES]
        async with session.use() as connection:
            rows |= await ask_some(connection, {table: questions[table] for table in asked})
    return rows


async def ask_some(connection: AsyncConnection[Any], questions: Mapping[Table, Command]) -> dict[Table, list[Any]]:
    """The same in one round trip. psycopg.Error: the connection is lost."""
    rows: dict[Table, list[Any]] = {}
    async with pipeline.sent(connection, *([command] for command in questions.values())) as answers:
        answered = [(table, await answers.next()) for table in questions]
    for table, answer in answered:
        if answer.error is None:
            rows[table] = pipeline.rows(pipeline.adapter_of(connection), answer.results[-1])
        elif is_lost(connection, answer.error):
            raise answer.error
        else:
            table.hold.begin(WHY_HELD.get(cause_of(answer.error), "query_failed"), brief(answer.error))
    return rows
