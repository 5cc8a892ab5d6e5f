"""What else can stand between nodes and their data: a standby that takes over, a pooler, another clock."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from cluster.embedded.programs import account_for, programs_for, run_as
from tests.fault.harness import Stage
from tests.support.nodes import wait_until
from tests.support.pooler import PROGRAM, Pooler

REPLICATION = "host replication all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"


class FailoverStage(Stage):
    """A primary and a synchronous standby; nodes know both addresses."""

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self._standby_port = self.reserve_port()
        self._standby = folder / "standby"
        self._account = account_for(self.server.data_dir)

    def server_settings(self) -> dict[str, str]:
        return {"hba_file": str(self.folder / "hba.conf"), "wal_level": "replica", "max_wal_senders": "5"}

    def start_server(self) -> None:
        (self.folder / "hba.conf").write_text(REPLICATION)
        (self.folder / "hba.conf").chmod(0o644)
        self.server.start()
        self._bin_dir = programs_for(self._account, self.server.bin_dir)
        (self.folder / "standby-parent").mkdir()
        if self._account is not None:
            os.chown(self.folder / "standby-parent", self._account.uid, self._account.gid)
        self._standby = self.folder / "standby-parent" / "data"
        self._do("pg_basebackup", "-d", f"host=127.0.0.1 port={self.server.port} user=postgres application_name=standby",
                 "-D", str(self._standby), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")  # fmt: skip
        with (self._standby / "postgresql.auto.conf").open("a") as conf:
            conf.write(f"port = {self._standby_port}\nunix_socket_directories = ''\nhot_standby = on\n")
        conf_text = (self._standby / "jobcluster.conf").read_text()
        kept = [line for line in conf_text.splitlines() if not line.startswith(("port ", "unix_socket_directories "))]
        (self._standby / "jobcluster.conf").write_text("\n".join(kept) + "\n")
        self._ctl("start", "-l", str(self._standby / "server.log"))
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            connection.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_until(lambda: connection.execute(query).fetchone() == (1,), "the standby is synchronous", 20)

    def stop_server(self) -> None:
        if (self._standby / "postmaster.pid").exists():
            self._ctl("stop", "-m", "immediate")
        super().stop_server()

    def fail_over(self) -> None:
        """The primary is killed for good, the standby promoted a second later."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        time.sleep(1)
        self._ctl("promote")

    @property
    def url(self) -> str:
        return (
            f"postgresql://postgres@127.0.0.1:{self.server.port},127.0.0.1:{self._standby_port}/postgres"
            "?target_session_attrs=read-write"
        )

    def node_url(self, number: int) -> str:
        del number
        return self.url

    def _ctl(self, command: str, *options: str) -> None:
        self._do("pg_ctl", "-D", str(self._standby), command, "-w", "-t", "30", *options)

    def _do(self, program: str, *arguments: str) -> None:
        result = run_as(self._account, self._bin_dir / program, *arguments)
        assert result.returncode == 0, f"{program}: {result.stdout} {result.stderr}"


class PoolerStage(Stage):
    """Nodes claim and finish through PgBouncer in transaction mode; for heartbeat and doorbell they have a direct connection."""

    PROGRAMS = (PROGRAM,)

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        database = f"host=127.0.0.1 port={self.server.port} user=postgres pool_size=6"
        self.pooler = Pooler(folder, self.reserve_port(), "postgres", database)

    def server_settings(self) -> dict[str, str]:
        return {"hba_file": str(self.folder / "hba.conf")}

    def start_server(self) -> None:
        (self.folder / "hba.conf").write_text(REPLICATION)
        (self.folder / "hba.conf").chmod(0o644)
        self.server.start()
        self.pooler.start()

    def stop_server(self) -> None:
        self.pooler.stop()
        super().stop_server()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.server.port}/postgres"

    def node_url(self, number: int) -> str:
        del number
        return f"postgresql://postgres@127.0.0.1:{self.pooler.port}/postgres"

    def node_options(self, number: int) -> dict[str, Any]:
        del number
        return {"direct_database_url": self.url}


class ClockStage(Stage):
    """Each node has a wall clock of its own, which `set_clock` moves while it runs. Jobs write their times on another clock."""

    PROGRAMS = ("faketime",)

    def set_clock(self, number: int, offset: str) -> None:
        """offset: as for faketime, "+1h"."""
        clock = self._clock(number)
        clock.with_suffix(".new").write_text(offset + "\n")
        clock.with_suffix(".new").rename(clock)

    def node_options(self, number: int) -> dict[str, Any]:
        self._clock(number).write_text("+0\n")
        library = subprocess.run(
            ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        return {
            "environment": {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(self._clock(number)),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        }

    def _clock(self, number: int) -> Path:
        return self.folder / f"clock{number}"
