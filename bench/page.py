"""Writes docs/performance.md and its plots from result files. What was not measured is left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench import goals
from bench.figures import Figures, Source, shown
from bench.plots import draw_all
from bench.scenarios import enqueue, large, memory, offered, snapshot
from bench.scenarios.feeder import WAITING
from bench.scenarios.steady import RATE

NAME = "performance"
INTRODUCTION = """\
# Performance

<!-- Written by python -m bench --page; do not edit. -->

Figures of real nodes beside a *floor*: what bare SQL does on the same Postgres, in the same run, in the shape of the product's
statements and without a product around it. The floor is what Postgres and the machine allow, so ratios to it say most.
How each figure comes about is in [bench/README.md](../bench/README.md).
"""
REPRODUCE = """\
## Measure it yourself

    make bench                                        what takes minutes, on a Postgres of its own
    .venv/bin/python -m bench snapshot                one of the long scenarios: long, large, memory, snapshot
    .venv/bin/python -m bench --help                  all scenarios and options
    .venv/bin/python -m bench --page FILE.json …      this page, from the files in bench/results

On a quiet machine: any other program makes everything slower, and the slowest percent much slower.
"""
WHERE_IT_GOES = """\
* **Drain.** Two cores have to do what is in the table, per job. Postgres takes as much as in the floor's loop, so 0.7 × floor
  would leave about 30 µs to coordinator and workers together. A worker needs some 20 µs of plain Python for a job: to build it
  from its row, check that its lease holds, run it in a task of its own, note what it does for the case that the process dies,
  and report. The coordinator keeps every claim until its outcome is written. Tried without effect beyond the noise: larger and
  smaller frames, reports gathered for longer, workers without garbage collection. Not done: a task per slot in place of one per
  job, since the cancellation of one job could then reach the next.
* **Limit of 16.** Sixteen jobs at most end and begin per round trip, so the time of one is the limit: traced, a swap of 12 jobs
  takes Postgres 0.9 ms and its disk 0.4 ms, and handing over the claimed ones takes the coordinator 0.5 ms. The next swap is
  sent before that, which made it 1.2 times as fast. The longer jobs take, the less of this counts: see the line about jobs of 5 s.
* **A single start.** Traced: the client's INSERT and commit 1.0 ms; until the node's claim is sent 0.3 ms; claim and commit 0.6 ms;
  until the job is with its worker 0.1 ms; until `perform` 0.3 ms. After a pause each of these runs with cold caches, several times
  slower than in a loop. What the floor does not do: a process that performs, whose crash harms nobody else, and a claim that
  checks lease, pauses and attempts. What helped: nothing is sent behind a claim for what has just rung, not even a look; the values
  of a claim are kept as they were sent the last time; the claimed job is handed over before the look; frames are written at once.
* **500 jobs/s.** Each job is three transactions, as with the floor: INSERT with NOTIFY, claim, outcome. Outcomes ride with the
  next claim where that comes within 3 ms. Tried: fewer looks (5 % less, within the noise).
* **`perform_many` of a generator.** The server waits while jobs are made, since a generator may read from the same connection.
"""
CAVEATS = """\
## What the figures do not say

* Postgres, nodes and the clients that insert share one machine and its cores. With a server of its own Postgres has more, and
  every round trip takes longer.
* Jobs do nothing, so all that is measured is the cluster. Yours do something, and that is nearly always what takes the time.
* Rounds are few and short. Nothing here shows what a day does: the growth of a table that is never pruned, backups, neighbours.
* Figures of two machines, or of two evenings on one, cannot be compared; ratios within a run can, with care.
* The others were not measured in these runs, but earlier on the same kind of machine.
* What happens when processes, hosts and connections die, and how soon jobs run again, is in [guarantees.md](guarantees.md).
"""


def write_page(files: Iterable[Path], folder: Path) -> Path:
    """folder: of the page; its plots go into a folder below."""
    figures = Figures(files)
    drawn = draw_all(figures, folder / NAME)
    plots = {name: f"{NAME}/{path.name}" for name, path in drawn.items()}
    parts = [
        INTRODUCTION, _runs(figures), _goals(figures), _where(figures), _drain(plots), _offered(figures, plots),
        _enqueue(figures), _snapshot(figures, plots), _large(figures), _types(figures), _many(figures), _memory(figures),
        REPRODUCE, CAVEATS,
    ]  # fmt: skip
    path = folder / f"{NAME}.md"
    path.write_text("\n".join(part for part in parts if part))
    return path


# --- the runs ---


def _runs(figures: Figures) -> str:
    headings = ["date (UTC)", "commit", "machine", "Postgres", "Python", "load before", "scenarios"]
    return _table(headings, [_run(source) for source in figures.sources if source.scenarios])


def _run(source: Source) -> list[str]:
    document = source.document
    machine = document["machine"]
    commit = (document["commit"] or "unknown")[:10] + (", with changes" if document["changed_files"] else "")
    cores = f"{machine['cores']} cores, {machine['memory_mib'] / 1024:.0f} GiB, {machine['system'].split('-')[0]}"
    return [
        document["date"][:16].replace("T", " "),
        commit,
        f"{machine['cpu']}, {cores}",
        document["postgres"]["server_version"],
        document["python"],
        f"{machine['load_at_start']:.1f}",
        ", ".join(source.scenarios),
    ]


# --- its parts ---


def _goals(figures: Figures) -> str:
    rows = goals.table(figures)
    if not rows:
        return ""
    shown_table = _table(["what", "reached", "to reach", "floor of the same run", "met"], rows)
    return f"## What was to be reached\n\nMedians over the rounds.\n\n{shown_table}\n{goals.NOTE}\n"


def _where(figures: Figures) -> str:
    variants = [
        ("drain, no limit", "drain", "one node"), ("drain, limit of 16", "limited", "limit of 16"),
        ("500 jobs/s", "steady", "one node"), (f"500 jobs/s, {goals.LISTEN}", "steady", goals.LISTEN),
    ]  # fmt: skip
    measures = ("CPU coordinators", "CPU workers", "CPU postgres", "CPU in all")
    rows = [
        [what, *(shown(figures.median(scenario, variant, measure)) for measure in measures)]
        for what, scenario, variant in variants
        if figures.median(scenario, variant, "CPU in all") is not None
    ]
    if not rows:
        return ""
    headings = ["CPU, µs/job", "coordinator", "workers", "Postgres", "in all"]
    return f"## Where the time goes\n\n{_table(headings, rows)}\n{WHERE_IT_GOES}"


def _drain(plots: dict[str, str]) -> str:
    if "drain" not in plots:
        return ""
    return f"## Throughput\n\n![No-op jobs drained per second, beside bare SQL]({plots['drain']})\n"


def _offered(figures: Figures, plots: dict[str, str]) -> str:
    if "offered" not in plots:
        return ""
    headings = [
        "offered", "p50, ms", "p99, ms", "coordinator, ms/job", "workers, ms/job", "Postgres, ms/job", "in all, ms/job",
        "in all, ms/s",
    ]  # fmt: skip
    measures = ["p50", "p99", "CPU coordinators", "CPU workers", "CPU postgres", "CPU in all", "CPU a second"]
    variants = [load.variant for load in offered.LOADS] + [offered.FLOOR_VARIANT]
    rows = [[variant, *(shown(figures.median("offered", variant, name)) for name in measures)] for variant in variants]
    batched = ", ".join(f"{load.rows} a statement at {load.variant}" for load in offered.LOADS if load.rows > 1)
    return (
        "## Jobs that arrive steadily\n\nFrom the call of `execute` for the INSERT, its commit included, to the first line of "
        f"`perform`, and the CPU of one node and Postgres meanwhile. One client inserts single rows; {batched}. At the lowest rate "
        "there are few jobs: p99 is about the slowest of them, and the cost of a node at rest is shared by few.\n\n"
        f"![Latency and CPU against the rate of jobs]({plots['offered']})\n\n{_table(headings, rows)}"
        f"\nThe client's process is in the column of the coordinator.\n"
    )


def _enqueue(figures: Figures) -> str:
    if not figures.has("enqueue"):
        return ""
    clients = [f"{count} client{'s' if count > 1 else ''}" for count in enqueue.CLIENTS]
    single = [
        [variant, *(_with_ratio(figures, variant, name) for name in clients)]
        for variant in figures.variants("enqueue")
        if figures.median("enqueue", variant, clients[0]) is not None
    ]
    many = [
        [f"{variant}: {name}", _with_ratio(figures, variant, name)]
        for variant in figures.variants("enqueue")
        for name in ("no triggers", "job table", "perform_many", "perform_many, a generator")
        if figures.median("enqueue", variant, name) is not None
    ]
    return (
        "## Enqueueing\n\nRows a second, and the ratio to the same table without the triggers of a job table. Single rows, each a "
        "transaction: with no node, with one that performs the jobs on the same two cores, and with one that every row wakes and "
        f"that may take none.\n\n{_table(['', *clients], single)}\nMany rows:\n\n{_table(['', 'rows/s'], many)}"
    )


def _with_ratio(figures: Figures, variant: str, measure: str) -> str:
    ratio = figures.ratio("enqueue", variant, measure)
    return shown(figures.median("enqueue", variant, measure)) + ("" if ratio is None else f" = {ratio:.2f} ×")


def _snapshot(figures: Figures, plots: dict[str, str]) -> str:
    if "snapshot" not in plots:
        return ""
    headings = ["type", "jobs/s", "without", "ratio", "ratio, last tenth", "claim, ms", "without"]
    rows = []
    for limit, _, _ in snapshot.TYPES:
        held, without = f"{limit}, {snapshot.HELD}", f"{limit}, {snapshot.WITHOUT}"
        values = [
            figures.median("snapshot", held, "performed"),
            figures.median("snapshot", without, "performed"),
            figures.ratio("snapshot", held, "performed"),
            figures.ratio("snapshot", held, "last slice"),
            figures.median("snapshot", held, "claim"),
            figures.median("snapshot", without, "claim"),
        ]
        rows.append([limit, *(shown(value) for value in values)])
    seconds = shown(figures.parameter("snapshot", "seconds"))
    return (
        "## While another session holds a snapshot\n\nA backup or a forgotten transaction keeps every dead row version, for "
        f"{seconds} s here, and all that reads the head of an index crawls over them. {WAITING:,} jobs wait all the time: a client "
        f"inserts as many as have been performed.\n\n![Throughput over time]({plots['snapshot']})\n\n{_table(headings, rows)}"
    )


def _large(figures: Figures) -> str:
    if not figures.has("large"):
        return ""
    rows = [
        [
            variant,
            shown(figures.median("large", variant, "drained")),
            shown(figures.ratio("large", variant, "drained")) if variant != large.EMPTY else "",
            shown(figures.median("large", variant, "claim")),
        ]
        for variant in figures.variants("large")
    ]
    headings = ["other rows in the table", "fresh jobs/s", "to the empty table", "claim, ms"]
    return f"## Large tables\n\nFresh jobs beside rows that are not for now.\n\n{_table(headings, rows)}"


def _many(figures: Figures) -> str:
    if not figures.has("many"):
        return ""
    measures = ("drained", "CPU in all", "lock waits, mean", "lock waits, most")
    rows = [
        [variant, *(shown(figures.median("many", variant, measure)) for measure in measures)]
        for variant in figures.variants("many")
        if figures.median("many", variant, "drained") is not None
    ]
    headings = ["", "jobs/s", "CPU, ms/1,000 jobs", "sessions that wait for a lock, mean", "most"]
    idle = figures.median("many", "8 idle nodes", "CPU postgres")
    at_rest = f"\nEight nodes at rest cost Postgres {idle / 10:.2f} % of a core.\n" if idle is not None else ""
    return f"## Many nodes\n\nSixteen nodes of one worker process each, on one Postgres.\n\n{_table(headings, rows)}{at_rest}"


def _types(figures: Figures) -> str:
    if not figures.has("types"):
        return ""
    measures = ("p50", "p99", "CPU coordinators", "CPU workers", "CPU postgres", "CPU in all")
    rows = [
        [variant, *(shown(figures.median("types", variant, measure)) for measure in measures)]
        for variant in figures.variants("types")
    ]
    headings = ["", "p50, ms", "p99, ms", "CPU, ms/1,000 jobs: coordinator", "workers", "Postgres", "in all"]
    return (
        f"## Many job types\n\n{RATE} jobs/s, all of one type. A busy node is on watch where nothing comes, and leaves those "
        f"tables out of its looks.\n\n{_table(headings, rows)}"
    )


def _memory(figures: Figures) -> str:
    if not figures.has("memory"):
        return ""
    jobs = f"{figures.parameter('memory', 'jobs') or 0:,.0f}"
    measures = ("PSS, idle", "private, idle", "private, first tenth", "private, all jobs", "growth, private")
    rows = [
        [variant, *(shown(figures.median("memory", variant, measure)) for measure in measures)]
        for variant in figures.variants("memory")
    ]
    headings = ["MiB", "PSS, idle", "private, idle", "after a tenth", "after all", "growth from then on"]
    return (
        f"## Memory\n\nA node with {memory.WORKERS} workers, idle and over {jobs} jobs. Private are pages that one process alone "
        f"has written; PSS divides those that are shared.\n\n{_table(headings, rows)}"
    )


def _table(headings: list[str], rows: list[list[str]]) -> str:
    """The first column is text, the others too where a cell has spaces."""
    lines = [
        _line(headings),
        _line(["---"] + ["---:"] * (len(headings) - 1) if _numeric(rows) else ["---"] * len(headings)),
    ]
    return "\n".join([*lines, *map(_line, rows)]) + "\n"


def _numeric(rows: list[list[str]]) -> bool:
    return not any(" " in cell for row in rows for cell in row[1:])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
