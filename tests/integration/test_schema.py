"""The migrations as files, and cluster/sql/schema.sql, which is what they add up to."""

from __future__ import annotations

import pytest

from cluster import statements
from cluster.embedded import wheel_bin_dir
from cluster.embedded.programs import major_version
from cluster.sql.dump import SCHEMA, fresh_dump, without_noise

DUMPED_WITH = 18


def test_the_dumped_schema_is_what_the_migrations_add_up_to() -> None:
    version = major_version(wheel_bin_dir())
    if version != DUMPED_WITH:
        pytest.skip(f"needs pg_dump of version {DUMPED_WITH}, not {version}")
    assert SCHEMA.read_text(encoding="utf-8") == fresh_dump(), "run `make schema`"


def test_a_dump_loses_its_noise_and_nothing_else() -> None:
    dump = """--
-- PostgreSQL database dump
--

\\restrict k3y
-- Dumped by pg_dump version 18.1

SET lock_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION f() RETURNS text
    AS $_$
-- kept
SET x = '$$';


$_$;


-- Name: t

CREATE TABLE t ();
\\unrestrict k3y
"""
    kept = "CREATE FUNCTION f() RETURNS text\n    AS $_$\n-- kept\nSET x = '$$';\n\n\n$_$;\n\nCREATE TABLE t ();\n"
    assert without_noise(dump) == kept


def test_every_migration_says_expand_or_contract_in_its_first_line() -> None:
    for name, text in statements.migrations().items():
        assert text.startswith(("-- expand: ", "-- contract: ")), name


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(name.split("_")[0]) for name in statements.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
