"""`make observe`: the newsletter with two nodes, a load that never ends, faults, and a Prometheus that watches it.

Until Ctrl-C; then everything is gone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cluster.embedded import free_port
from cluster.errors import ClusterError
from examples.newsletter.photos import make_photo
from examples.newsletter.processes import APP, DemoError, Processes

GRAFANA = APP.parents[1] / "grafana"
PHOTOS = 6
CUSTOMERS = """
INSERT INTO customers (name, email) SELECT 'Customer ' || n, 'customer-' || n || '@example.org' FROM generate_series(1, 1000) n
ON CONFLICT DO NOTHING
"""
MAILS = "INSERT INTO email_customers_jobs (customer_id) SELECT id FROM customers ORDER BY random() LIMIT %s"
LATER = """
INSERT INTO email_customers_jobs (customer_id, run_at)
SELECT id, now() + interval '20 s' FROM customers ORDER BY random() LIMIT 10
"""
THUMBNAILS = """
INSERT INTO resize_image_jobs (file_name)
SELECT 'photo-' || n || CASE n %% 3 WHEN 0 THEN '.png' ELSE '.jpg' END
FROM (SELECT 1 + floor(random() * %(photos)s * 1.1)::int AS n FROM generate_series(1, 3)) AS chosen
"""
"""A tenth of them are not there, and fail."""
REPORT = "INSERT INTO write_report_jobs (issue) VALUES ('2025-01')"
BURST, BURST_EVERY, REPORT_EVERY = 600, 60, 10
"""Mails, and seconds."""


def main(arguments: Sequence[str] = ()) -> int:
    """Returns the exit code. Nothing outlives it: no process, no file."""
    options = _parse(arguments)
    processes = Processes(options.database_url, None if options.database_url else free_port(), options.http_host)
    try:
        _start(processes, options)
        _load(processes)
    except KeyboardInterrupt:
        print("\nstopping all processes")
    except (DemoError, ClusterError, psycopg.Error) as error:
        print(f"observe: {error}", file=sys.stderr)
        log = getattr(error, "log", None)
        if log is not None:
            print(_last_line(log), file=sys.stderr)
        return 1
    finally:
        processes.stop()
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.newsletter.observe", description="The newsletter, to be watched."
    )
    parser.add_argument("--database-url", default="", help="an empty database; default: a Postgres of its own")
    parser.add_argument("--http-host", default="127.0.0.1", help="where the nodes' metrics are; default: 127.0.0.1")
    parser.add_argument("--ports", type=int, nargs=2, default=(0, 0), help="of the nodes' metrics; default: free ones")
    parser.add_argument("--prometheus-port", type=int, default=9090, help="default: 9090")
    parser.add_argument("--no-prometheus", dest="prometheus", action="store_false", help="there is one elsewhere")
    return parser.parse_args(arguments)


def _start(processes: Processes, options: argparse.Namespace) -> None:
    if options.prometheus and shutil.which("prometheus") is None:
        raise DemoError(
            "prometheus is not installed: apt install prometheus (macOS: brew install prometheus), or --no-prometheus"
        )
    if not options.database_url:
        processes.start_postgres()
    with psycopg.connect(processes.database_url, autocommit=True) as connection:
        is_there = connection.execute("SELECT to_regclass('customers') IS NOT NULL").fetchone()
    if is_there == (False,):
        processes.psql((APP / "schema.sql").read_text())
    processes.cluster("migrate")
    processes.start_mail_server("--refuse-every", "7")
    for number in range(PHOTOS):
        make_photo(processes.media / "photos", number + 1)
    for port in options.ports:
        processes.start_node(port or None)
    for node in processes.nodes:
        node.wait_until_ready()
    print(f"dashboard:          {processes.start_dashboard()}")
    url = _start_prometheus(processes, options.prometheus_port) if options.prometheus else ""
    _tell(processes, url)


def _start_prometheus(processes: Processes, port: int) -> str:
    """Its address."""
    configuration = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(GRAFANA / "prometheus" / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "jobcluster",
                "static_configs": [{"targets": [f"127.0.0.1:{node.port}" for node in processes.nodes]}],
            }
        ],
    }
    file = processes.folder / "prometheus.yml"
    file.write_text(json.dumps(configuration))  # JSON is YAML
    address = f"127.0.0.1:{port}"
    data = processes.folder / "prometheus"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    log = processes.folder / "prometheus.log"
    process = processes.start(command, log)
    time.sleep(1)
    if process.poll() is not None:
        raise DemoError(f"prometheus ended with {process.returncode}", log)
    return f"http://{address}"


def _last_line(file: Path) -> str:
    return file.read_text(errors="replace").strip().rpartition("\n")[2]


def _tell(processes: Processes, prometheus: str) -> None:
    for node in processes.nodes:
        print(f"metrics of a node:  http://127.0.0.1:{node.port}/metrics")
    database = conninfo_to_dict(processes.database_url)
    print(f"Postgres:           {processes.database_url}")
    if prometheus:
        print(f"Prometheus:         {prometheus}, with alerts at {prometheus}/alerts")
        print("Grafana:            with these variables its provisioning finds all of it:\n")
        for name, value in grafana_variables(
            prometheus, {name: str(value) for name, value in database.items()}
        ).items():
            print(f"    export {name}='{value}'")
        print("\n    or add the two data sources by hand, and import grafana/dashboards/*.json")
    print("\nMails, photos and reports come until Ctrl-C.", flush=True)


def grafana_variables(prometheus: str, database: dict[str, str]) -> dict[str, str]:
    """What the files of grafana/provisioning ask for, and where Grafana finds those."""
    return {
        "GF_PATHS_PROVISIONING": str(GRAFANA / "provisioning"),
        "JOBCLUSTER_DASHBOARDS": str(GRAFANA / "dashboards"),
        "PROMETHEUS_URL": prometheus,
        "PROMETHEUS_INTERVAL": "5s",
        "JOBCLUSTER_POSTGRES": f"{database.get('host', 'localhost')}:{database.get('port', '5432')}",
        "JOBCLUSTER_POSTGRES_DATABASE": database.get("dbname", ""),
        "JOBCLUSTER_POSTGRES_USER": database.get("user", ""),
        "JOBCLUSTER_POSTGRES_PASSWORD": database.get("password", ""),
        "JOBCLUSTER_POSTGRES_SSLMODE": database.get("sslmode", "disable"),
    }


def _load(processes: Processes) -> None:
    """Jobs, a second at a time, until Ctrl-C. DemoError: a node has ended."""
    with psycopg.connect(processes.database_url, autocommit=True) as connection:
        connection.execute(CUSTOMERS)
        second = 0
        while True:
            connection.execute(MAILS, [BURST if second % BURST_EVERY == BURST_EVERY - 1 else 10])
            connection.execute(THUMBNAILS, {"photos": PHOTOS})
            if second % REPORT_EVERY == 0:
                connection.execute(REPORT)
                connection.execute(LATER)
            for node in processes.nodes:
                if node.process.poll() is not None:
                    raise DemoError(f"a node ended with {node.process.returncode}", node.log)
            second += 1
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
