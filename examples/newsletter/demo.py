"""`make demo`: the newsletter on a Postgres of its own, with two nodes; exit code 0 only if every check holds.

Starts everything, adds jobs with psql, shows the progress, compares the results, and removes what it has made.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import ClusterError
from examples.newsletter.checks import (
    Check,
    Latency,
    Mails,
    check_jobs,
    check_mails,
    check_retries,
    check_stop,
    check_thumbnails,
    jobs_by_node,
    latency_of,
)
from examples.newsletter.photos import THUMBNAIL_WIDTH, make_photo
from examples.newsletter.processes import APP, ENDINGS, DemoError, Processes
from examples.newsletter.progress import Counts, Progress, count_jobs

INTERRUPTED = 130
ROLLED_BACK = 20
REFUSE_EVERY = 7
LATER = 4
"""Seconds."""

ONE = """\
INSERT INTO customers (name, email)
VALUES ('Ada', '{address}');
INSERT INTO email_customers_jobs (customer_id)
SELECT id FROM customers WHERE name = 'Ada';
"""
ROLLBACK = """\
BEGIN;
WITH signup AS (
  INSERT INTO customers (name, email)
  SELECT 'Nobody', 'nobody-' || n || '@example.org'
  FROM generate_series(1, {count}) n RETURNING id)
INSERT INTO email_customers_jobs (customer_id) SELECT id FROM signup;
ROLLBACK;
"""
CUSTOMERS = """\
INSERT INTO customers (name, email, vip)
SELECT 'Customer ' || n, 'customer-' || n || '@example.org', n % 10 = 0
FROM generate_series(2, {mails}) n;
"""
NOW = """\
INSERT INTO email_customers_jobs (customer_id)
SELECT id FROM customers WHERE name <> 'Ada' AND NOT vip AND id % 10 <> 1;
"""
FIRST = """\
INSERT INTO email_customers_jobs (customer_id, priority)
SELECT id, 1 FROM customers WHERE vip;
"""
LAST = """\
INSERT INTO email_customers_jobs (customer_id, run_at)
SELECT id, now() + interval '{seconds} s' FROM customers
WHERE name <> 'Ada' AND NOT vip AND id % 10 = 1;
"""
PHOTOS = """\
INSERT INTO resize_image_jobs (file_name, width)
SELECT 'photo-' || n || CASE n % 3 WHEN 0 THEN '.png' ELSE '.jpg' END, {width}
FROM generate_series(1, {photos}) n;
"""
REPORT = """\
INSERT INTO write_report_jobs (issue, run_at)
VALUES ('2025-01', now() + interval '{seconds} s');
"""


def main(arguments: Sequence[str] = ()) -> int:
    """Returns the exit code. Nothing outlives it: no process, no file."""
    options = _parse(arguments)
    console = Console(highlight=False)
    previous = {number: signal.getsignal(number) for number in ENDINGS}
    processes = Processes()
    try:
        return 0 if Demo(console, processes, options).run() else 1
    except KeyboardInterrupt:
        console.print("\ninterrupted: stopping all processes")
        return INTERRUPTED
    except (DemoError, ClusterError, psycopg.Error) as error:
        console.print(Text(f"\nThe demo failed: {error}", style="bold red"))
        _print_end(console, getattr(error, "log", None))
        return 1
    finally:
        processes.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.newsletter.demo", description="The newsletter demo.")
    parser.add_argument("--mails", type=int, default=500, help="default: 500")
    parser.add_argument("--photos", type=int, default=60, help="default: 60")
    parser.add_argument("--lose", type=int, default=0, metavar="MAILS", help="lose some, to see the checks fail")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="for all jobs together")
    return parser.parse_args(arguments)


class Demo:
    """The steps in their order, each with a line that explains it."""

    def __init__(self, console: Console, processes: Processes, options: argparse.Namespace) -> None:
        self._console = console
        self._processes = processes
        self._options = options
        self._expected = {"EmailCustomersJob": options.mails, "ResizeImageJob": options.photos, "WriteReportJob": 1}

    def run(self) -> bool:
        """Whether every check holds."""
        began = time.monotonic()
        self._title(f"A newsletter: {self._options.mails} mails, {self._options.photos} photos, two nodes")
        with ThreadPoolExecutor(2) as painters:
            photos = [
                painters.submit(make_photo, self._processes.media / "photos", number + 1)
                for number in range(self._options.photos)
            ]
            try:
                self._start(photos)
            finally:
                painters.shutdown(cancel_futures=True)
        with psycopg.connect(self._processes.postgres.url(), autocommit=True) as connection:
            self._title("Jobs are rows: any program that speaks SQL adds them, here psql")
            self._enqueue_one(connection)
            self._enqueue_many()
            counts = self._watch(connection)
            self._print_jobs(connection, counts)
            checks = [*self._compare(counts), self._stop_nodes(connection)]
        return self._judge(checks, time.monotonic() - began)

    # --- steps ---

    def _start(self, photos: list[Future[None]]) -> None:
        processes = self._processes
        before = time.monotonic()
        processes.start_postgres()
        self._say("Postgres", f"a new server with an empty database ({time.monotonic() - before:.1f} s)")
        processes.psql((APP / "schema.sql").read_text())
        tables = processes.cluster("migrate").count("created")
        self._say("Migrate", f"the application's tables, and {tables} job tables made from its {tables} job classes")
        port = processes.start_mail_server("--lose", str(self._options.lose), "--refuse-every", str(REFUSE_EVERY))
        self._say("Mail server", f"SMTP on port {port}; it turns every {REFUSE_EVERY}th recipient away twice")
        for photo in photos:
            photo.result()
        self._say("Photos", f"{len(photos)} JPEG and PNG files, to be made into thumbnails")
        before = time.monotonic()
        for _ in range(2):
            processes.start_node()
        for node in processes.nodes:
            node.wait_until_ready()
        ports = " and ".join(str(node.port) for node in processes.nodes)
        self._say(
            "Two nodes",
            f"`cluster run` twice, with two worker processes each: ready in {time.monotonic() - before:.1f} s; "
            f"/readyz and /metrics on ports {ports}",
        )
        self._say("Dashboard", f"{processes.start_dashboard()} while this runs")

    def _enqueue_one(self, connection: psycopg.Connection[Any]) -> None:
        self._psql("One job, while both nodes have nothing to do:", ONE.format(address=_address(1)))
        deadline = time.monotonic() + 15
        while count_jobs(connection)["EmailCustomersJob"].ended == 0:
            if time.monotonic() > deadline:
                raise DemoError("the first job has not ended after 15 s", self._processes.nodes[0].log)
            time.sleep(0.01)
        latency = latency_of(connection, "EmailCustomersJob")
        if latency is not None:
            self._note(f"It began {_shown(latency.median)} after its INSERT: Postgres rings a node, nobody polls.")

    def _enqueue_many(self) -> None:
        mails = self._options.mails
        self._processes.psql(CUSTOMERS.format(mails=mails))
        self._psql("A transaction that is rolled back takes its jobs along:", ROLLBACK.format(count=ROLLED_BACK))
        self._psql("A mail to most of the other customers, now:", NOW)
        self._psql("VIPs come last but go first, by priority:", FIRST)
        self._psql(f"The rest in {LATER} seconds:", LAST.format(seconds=LATER))
        photos = PHOTOS.format(photos=self._options.photos, width=THUMBNAIL_WIDTH)
        self._psql("CPU work, in worker processes that do nothing else meanwhile:", photos)
        self._psql("And a report, later still:", REPORT.format(seconds=LATER + 2))

    def _watch(self, connection: psycopg.Connection[Any]) -> Counts:
        self._title("Two nodes share the work")
        progress = Progress(self._console, self._expected)
        deadline = time.monotonic() + self._options.timeout
        with progress.showing() as show:
            while True:
                counts = count_jobs(connection)
                show(counts)
                if all(counts[name].ended >= expected for name, expected in self._expected.items()):
                    return counts
                for node in self._processes.nodes:
                    if node.process.poll() is not None:
                        raise DemoError(f"a node ended with {node.process.returncode}", node.log)
                if time.monotonic() > deadline:
                    return counts
                time.sleep(0.1)

    def _compare(self, counts: Counts) -> list[Check]:
        mails = Mails.read(self._processes.mails)
        rolled_back = [f"nobody-{number + 1}@example.org" for number in range(ROLLED_BACK)]
        addresses = [_address(number + 1) for number in range(self._options.mails)]
        return [
            check_jobs(counts, self._expected),
            *check_mails(mails, addresses, rolled_back),
            check_retries(counts, mails),
            check_thumbnails(self._processes.media, self._options.photos),
        ]

    def _stop_nodes(self, connection: psycopg.Connection[Any]) -> Check:
        exit_codes = [node.terminate() for node in self._processes.nodes]
        return check_stop(connection, exit_codes)

    # --- what is shown ---

    def _print_jobs(self, connection: psycopg.Connection[Any], counts: Counts) -> None:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=True)
        table.add_column("job", no_wrap=True, ratio=1)
        for header in ("succeeded", "failed", "retries", "start p50", "start p99"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, job in counts.items():
            succeeded = job.statuses.get("succeeded", 0)
            failed = job.ended - succeeded
            latency = latency_of(connection, name)
            shown = [_shown(seconds) for seconds in latency] if latency else ["", ""]
            table.add_row(name, str(succeeded), str(failed), str(job.retries), *shown)
        self._console.print(table)
        first, others = (latency_of(connection, "EmailCustomersJob", f"priority {sign} 50") for sign in "<=")
        self._note(
            "start: from INSERT or run_at to the start of the first attempt, the wait for one of the 16 places included"
            + (f"; of VIPs {_medians(first, others)}." if first and others else ".")
        )
        one, other_one = jobs_by_node(connection)[:2]
        self._note(f"Node 1 has finished {one} jobs, node 2 {other_one}.")

    def _judge(self, checks: list[Check], seconds: float) -> bool:
        self._title("Is it true?")
        for check in checks:
            label, style = ("ok", "bold green") if check.kept else ("FAILED", "bold red")
            self._labelled(label, style, 8, f"{check.promise}: {check.said}")
        broken = sum(not check.kept for check in checks)
        if broken:
            self._console.print(Text(f"\n{broken} of {len(checks)} checks failed.", style="bold red"))
        else:
            self._console.print(
                f"\nAll {len(checks)} checks hold, after {seconds:.0f} s. The code: examples/newsletter"
            )
            self._console.print("To look around for longer, with dashboard and metrics: make observe")
        return not broken

    def _title(self, text: str) -> None:
        self._console.print(Text(f"\n{text}\n", style="bold"))

    def _say(self, label: str, text: str) -> None:
        self._labelled(label, "cyan", 13, text)

    def _labelled(self, label: str, style: str, indent: int, text: str) -> None:
        """The text in a column of its own, without the trailing blanks of a table."""
        lines = textwrap.wrap(text, self._console.width - indent)
        shown = textwrap.indent("\n".join(lines), " " * indent)[indent:]
        self._console.print(Text.assemble((label.ljust(indent), style), shown))

    def _note(self, text: str) -> None:
        self._console.print(Text(textwrap.fill(text, self._console.width)))

    def _psql(self, why: str, statements: str) -> None:
        self._note(why)
        self._processes.psql(statements)
        self._console.print(Text(textwrap.indent(statements, "    ").rstrip(), style="cyan"), soft_wrap=True)


def _address(number: int) -> str:
    return f"customer-{number}@example.org"


def _medians(first: Latency, others: Latency) -> str:
    return f"{_shown(first.median)}, of the others {_shown(others.median)} (p50)"


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _print_end(console: Console, log: Path | None) -> None:
    """The last lines of a process that is to blame."""
    if log is not None and log.exists():
        lines = log.read_text(errors="replace").splitlines()[-15:]
        console.print(Text("\n".join([f"{log.name}:", *lines])), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
