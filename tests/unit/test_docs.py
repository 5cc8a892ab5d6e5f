"""What the documentation says is what the code does: its Python runs, its tables name what there is."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cluster import events, metrics
from cluster.coordinator import census, claim, rescue
from cluster.coordinator import held_locks as held
from cluster.errors import ExitCode
from cluster.job import Job, definition
from cluster.job_checks import OPTIONS, STANDARD_COLUMNS
from cluster.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md", "docs/jobs.md")
# Statements that only define; calls need a database.
DEFINING = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def first_cells(page: str, heading: str) -> list[str]:
    """The first cell of each row of the first table below a heading, without its backquotes."""
    section = text_of(page).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


def names_in(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_documentation_compiles_and_defines_job_classes(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look annotations up
    namespace = vars(module)
    for source in _PYTHON.findall(text_of(page)):
        tree = ast.parse(source)
        compile(tree, page, "exec", dont_inherit=True)
        tree.body = [node for node in tree.body if isinstance(node, DEFINING) and not _imports_jobs(node)]
        exec(compile(tree, page, "exec", dont_inherit=True), namespace)
    jobs = [value for value in namespace.values() if isinstance(value, type) and issubclass(value, Job)]
    defined = [job_class for job_class in jobs if hasattr(job_class, "perform")]  # without it, it is a base class
    assert defined
    for job_class in defined:
        assert definition(job_class).columns


def _imports_jobs(node: ast.stmt) -> bool:
    """The tutorial's test imports the tutorial's package."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jobs"


def test_settings_are_documented_in_their_own_words() -> None:
    parts = re.split(r"^## `(\w+)`$", text_of("docs/settings.md"), flags=re.MULTILINE)[1:]
    documented = {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    assert documented == {variable: meaning for variable, _, _, meaning in Settings().describe()}


def test_all_options_are_documented() -> None:
    assert names_in(first_cells("docs/jobs.md", "Options")) == set(OPTIONS)
    assert names_in(first_cells("README.md", "Options of a job class")) == set(OPTIONS)


def test_all_standard_columns_are_documented() -> None:
    assert names_in(first_cells("docs/sql.md", "A job table")) >= set(STANDARD_COLUMNS)


def test_all_metrics_are_documented() -> None:
    # Only a collector has describe(); it names a counter without, and an info with another ending than Prometheus shows.
    endings = {"counter": "_total", "info": "_info"}
    exported = {
        metric.name + endings.get(metric.type, "")
        for collector in vars(metrics).values()
        if hasattr(collector, "describe") and not isinstance(collector, type)
        for metric in collector.describe()
    }
    assert names_in(first_cells("docs/operations.md", "Metrics")) == exported


def test_all_events_are_documented() -> None:
    source = Path(events.__file__).read_text(encoding="utf-8")
    logged = set(re.findall(r"(?:log\.\w+|level)\(\s*\"(\w+)\"", source))
    assert names_in(first_cells("docs/operations.md", "Logs")) >= logged


def test_all_reasons_of_troubles_are_documented() -> None:
    """As the coordinator's parts give them: of a table as a whole, and of rows."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "cluster/coordinator").glob("*.py")]
    given = {
        name
        for source in sources
        for name in re.findall(r'"(\w+_refused|table_\w+|no_privilege|query_failed|too_slow)"', source)
    }
    section = (
        text_of("docs/operations.md").split("\n## Something is wrong with one job type\n", 1)[1].split("\n## ", 1)[0]
    )
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == given


def test_all_exit_codes_are_documented() -> None:
    assert {int(cell) for cell in first_cells("docs/operations.md", "Exit codes")} == {*map(int, ExitCode), 130, 143}


def test_the_arithmetic_of_a_thousand_nodes_is_right_and_its_intervals_are_those_of_the_code() -> None:
    section = text_of("docs/production.md").split("\n## A thousand nodes\n", 1)[1].split("\n### ", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if " s | " in line]
    heartbeat = Settings().heartbeat_interval.total_seconds()
    held_locks = min(held.LONGEST_INTERVAL, held.INTERVAL * 1000 / held.LOOKS_FOR)
    intervals = [float(every.removesuffix(" s")) for _, every, _, _, _ in rows]
    assert intervals == [
        heartbeat, rescue.look_interval(1000), held_locks, census.INTERVAL, claim.LOOK_INTERVAL, claim.LOOK_INTERVAL,
        heartbeat, rescue.SWEEP_INTERVAL * 1000,
    ]  # fmt: skip
    for interval, (_, _, a_second, milliseconds, cores) in zip(intervals, rows, strict=True):
        assert float(a_second) == pytest.approx(1000 / interval, rel=0.01)
        assert float(cores) == pytest.approx(1000 / interval * float(milliseconds) / 1000, abs=0.0006)
    fixed = sum(float(row[4]) for row in rows if "each job table" not in row[0])
    each_table = sum(float(row[4]) for row in rows if "each job table" in row[0])
    assert (
        f"Half a core, and {each_table:.3f} for each job table: {fixed + 10 * each_table:.1f} cores with ten" in section
    )
    assert round(fixed, 1) == 0.5


def test_tests_that_the_documentation_names_are_there() -> None:
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in written, (page.name, name)
