"""When another code came: starts of nodes whose version, or job code, is not that of the start before. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cluster.dashboard.database import Connection


@dataclass(frozen=True)
class Deploy:
    """A start of a node: its version, and its job code, see `cluster.nodes.code`."""

    at: datetime
    version: str
    code: str


async def known_deploys(connection: Connection) -> list[Deploy]:
    """In order. Nodes that have ended are remembered for a day; without older ones nothing is a deploy."""
    rows = await (await connection.execute(_STARTS)).fetchall()
    return deploys(Deploy(**row) for row in rows)


_STARTS = "SELECT started_at AS at, version, code FROM cluster.nodes ORDER BY started_at DESC LIMIT 2000"


def deploys(starts: Iterable[Deploy]) -> list[Deploy]:
    """Of starts in any order. The first one known is none."""
    found: list[Deploy] = []
    before: Deploy | None = None
    for start in sorted(starts, key=lambda start: start.at):
        if before is not None and (start.version, start.code) != (before.version, before.code):
            found.append(start)
        before = start
    return found
