"""A real Prometheus for a test: scrapes nodes every second, with our rules."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.nodes import free_port, wait_until

Series = dict[str, Any]
"""metric: its labels; value or values: times and numbers as text."""


class Prometheus:
    """url: where its API is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: object) -> Any:  # Any: JSON
        """AssertionError: it refuses, with its reason."""
        query = urllib.parse.urlencode({name.rstrip("_"): value for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{error.read().decode()}\n{parameters}") from None

    def now(self, expression: str) -> list[Series]:
        found: list[Series] = self.ask("query", query=expression)["result"]
        return found

    def over(self, expression: str, start: float, end: float, step: float = 1) -> list[Series]:
        """Times in seconds since the epoch."""
        found: list[Series] = self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]
        return found


@contextmanager
def running_prometheus(folder: Path, ports: Sequence[int], rules: Path) -> Iterator[Prometheus]:
    """Watches what answers on these ports of 127.0.0.1. Ready, and gone afterwards."""
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "jobcluster", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: _is_ready(address), "Prometheus is ready", seen=(folder / "prometheus.log").read_text)
        yield Prometheus(f"http://{address}")
    finally:
        process.kill()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
