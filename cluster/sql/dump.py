"""Writes cluster/sql/schema.sql, what all migrations add up to: for reviewers, and for a test that compares it.

Run by `make schema`; nothing else imports it. pg_dump of the wheel's Postgres on an empty server made for the purpose.
"""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from cluster.embedded import EmbeddedPostgres, disposable_server
from cluster.embedded.programs import run_as
from cluster.errors import ClusterError
from cluster.migration import migrate_schema

SCHEMA = Path(__file__).with_name("schema.sql")
HEADER = "-- What the migrations add up to. Written by `make schema`, never by hand.\n\n"


def main() -> None:
    """Replaces schema.sql."""
    SCHEMA.write_text(fresh_dump(), encoding="utf-8")


def fresh_dump() -> str:
    """The text of schema.sql, from a server that is made for it and removed again."""
    with disposable_server(fast=True) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            migrate_schema(connection)
        return HEADER + without_noise(_pg_dump(server))


def _pg_dump(server: EmbeddedPostgres) -> str:
    options = ("--schema-only", "--schema=cluster", "--no-owner", "--no-tablespaces", f"--dbname={server.url()}")
    result = run_as(None, server.bin_dir / "pg_dump", *options)
    if result.returncode != 0:
        raise ClusterError(f"pg_dump failed: {result.stderr.strip()}")
    return result.stdout


_QUOTED = re.compile(r"(\$(\w*)\$.*?\$\2\$)", re.DOTALL)
_NOISE = re.compile(r"^(--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict ).*\n", re.MULTILINE)


def without_noise(dump: str) -> str:
    """A dump without comments, versions, settings and random keys. Bodies of functions stay as they are."""
    parts = _QUOTED.split(dump)
    del parts[2::3]  # the tags by themselves
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", _NOISE.sub("", part)) for part in parts[::2]]
    return "".join(parts).strip() + "\n"


if __name__ == "__main__":
    main()
