"""ARCHITECTURE.md names every statement that changes state, and no link of the documentation leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SQL = ROOT / "cluster" / "sql"
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
STATUSES = {"scheduled", "not_started", "running", "retry", "succeeded", "failed", "timed_out", "cancelled"}

_WRITES = re.compile(r"\b(UPDATE|INSERT INTO|DELETE FROM) (\{table\}|cluster\.\w+)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def edges() -> list[tuple[str, str, str, str]]:
    """The rows of the edge tables: from, to, by, caller."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    found = [row for row in rows if len(row) == 4 and (row[2].endswith(".sql") or row[2].startswith("cluster."))]
    return [(start, end, by, caller) for start, end, by, caller in found]


def statement(name: str) -> str:
    lines = (SQL / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))


def test_the_edge_tables_list_every_statement_that_writes_and_no_other() -> None:
    files = {path.name for path in SQL.glob("*.sql")} - {"schema.sql"}
    writing = {name for name in files if _WRITES.search(statement(name))}
    listed = {by for _, _, by, _ in edges() if by.endswith(".sql")}
    assert listed == writing


def test_every_function_in_the_edge_tables_exists() -> None:
    migrations = "\n".join(path.read_text(encoding="utf-8") for path in (SQL / "migrations").glob("*.sql"))
    functions = {by for _, _, by, _ in edges() if by.startswith("cluster.")}
    assert functions
    assert not [name for name in functions if f"CREATE FUNCTION {name}(" not in migrations]


def test_every_caller_in_the_edge_tables_uses_its_statement() -> None:
    for _, _, by, caller in edges():
        if by.endswith(".sql"):
            assert f'"{by.removesuffix(".sql")}"' in (ROOT / "cluster" / caller).read_text(encoding="utf-8"), by


def test_a_statement_starts_from_the_states_that_its_edge_names() -> None:
    for start, _, by, _ in edges():
        states = set(start.split(", ")) & STATUSES
        if by.endswith(".sql"):
            assert states <= set(re.findall(r"'(\w+)'", statement(by))), by


def test_the_edges_lead_to_every_state() -> None:
    reached = {state for _, end, _, _ in edges() for state in end.split(", ")}
    assert reached >= STATUSES


def test_architecture_is_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 210


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
