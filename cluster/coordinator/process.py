"""One worker process as its coordinator sees it: its channel, what it holds, and how it ended.

Starts and ends the operating system's process; which job goes where is decided in `pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cluster.coordinator.claims import Claim
from cluster.coordinator.forkserver import Forkserver, has_ended
from cluster.coordinator.stacks import Stacks
from cluster.frames import coordinator_end
from cluster.groups import end_group
from cluster.notes import Notes, notes_size
from cluster.spawn import STOP_SIGNAL, WorkerOptions, worker

UNTOLD = 255
"""Exit code of a worker of which the forkserver has not told: multiprocess makes it up."""
FORKSERVERS_END = 0.5
"""Seconds within which a forkserver that has lost its descriptors has ended."""
LAST_WORDS = 0.2
"""Seconds to wait for the end of a dead worker's socket."""


class Kill(NamedTuple):
    """Why the node kills a worker, and the ticket of the attempt on whose account; its neighbours are released.

    reason: timed_out, cancelled, released, blocked (its job held the loop for too long), memory (it has too much), fenced,
    forkserver_died, hung (it does not come up), replaced (its plain job was stopped half-way), or recycled. ticket None: on
    nobody's account. detail: how much memory; of the first four, where its threads were.
    """

    reason: str
    ticket: int | None
    detail: str = ""


class WorkerProcess:
    """One worker. Owned by the pool, which alone changes `claims`, `alone` and `reserved`."""

    def __init__(
        self, options: WorkerOptions, forkserver: Forkserver, received: Callable[[WorkerProcess, Sequence[Any]], None]
    ) -> None:
        self.claims: dict[int, Claim] = {}
        """Everything sent to it that has not ended, by ticket. Written by the placement."""
        self.is_whole = False
        """It performs one job that must have no neighbour. Written by the placement, as `is_reserved` is."""
        self.is_reserved = False
        """It takes nothing until it is empty: a job that must have no neighbour waits for it."""
        self.is_leaving = False
        """It takes nothing more, and ends once it is empty. Written by the pool, as the time is."""
        self.leaving_since = 0.0
        self.performed = 0
        """Attempts that it has ended. Written by the placement."""
        self.ended_jobs = 0
        """Since the rate was last measured. Written by the placement, as the rate is."""
        self.rate = 0.0
        """Jobs begun and ended a second, lately."""
        self.is_up = False
        """It can perform jobs. Written by the pool, as the rest is."""
        self.importing = ""
        """The job module that it imports, before it is up."""
        self.unfit = ""
        """Why its job classes are not those that this node needs; empty: it has not said so."""
        self.classes: list[str] = []
        """Names of the job classes that it has found, once it is up."""
        self.kill_reason: Kill | None = None
        self.garbage = ""
        """What is wrong with what it sent; empty: nothing."""
        self.stops: dict[int, tuple[float, str]] = {}
        """Attempts, by ticket, told to stop: until when, and why. Past that time the process is killed."""
        self.overrun: asyncio.TimerHandle | None = None
        """When the job that it performs in its main thread has used up its time. Written by the placement."""
        self.doomed: tuple[Kill, float] | None = None
        """Why it is about to be killed, and since when: it is writing down where it is. Written by the pool."""
        self.blocked_ticket: int | None = None
        """The job of which the log has been told that it holds the loop."""
        self.peak_memory = 0
        """Largest resident size seen, in bytes."""
        self.memory = 0
        """Resident size when last seen, in bytes."""
        self.started_at = self._was_running = time.monotonic()
        self.forked_from: int | None = None
        """Pid of the forkserver. When that has died, so do its workers, and no job is to blame."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slots = options.slots
        self._array = forkserver.context.RawArray("q", notes_size(options.slots))
        self.notes = Notes(self._array, options.slots)
        self._ours, self._theirs = socket.socketpair()
        self.stacks = Stacks()
        self._closed = asyncio.Event()
        self._burial: asyncio.Future[None] | None = None
        self._channel = coordinator_end(lambda frame: received(self, frame), self._closed.set, self._sent_garbage)
        options = replace(options, parent=os.getpid(), stacks=self.stacks.path)
        # Not a daemon, since those may have no children. The pool ends it.
        self._process = forkserver.context.Process(
            target=worker, args=(options, self._theirs, self._array), daemon=False
        )
        self.forkserver = forkserver
        self._oom_kills = oom_kills()

    async def start(self) -> None:
        """Starts the process; it says ("ready", …) when it can perform. OSError, EOFError: the forkserver died meanwhile.

        TimeoutError from around it, or any other cancellation: the forkserver is ended, since it may hang in an import.
        """
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(self.forkserver.threads, self._process.start)
        try:
            await asyncio.shield(starting)
            self.forked_from = self.forkserver.pid
            self.forkserver.forked(self.forked_from)  # a worker may import for longer than the lease
            self._theirs.close()
            self._ours.setblocking(False)
            await loop.create_unix_connection(lambda: self._channel, sock=self._ours)
        except asyncio.CancelledError:
            while not starting.done():  # the thread may have been about to start another one
                self.forkserver.kill()
                await asyncio.wait([starting], timeout=0.1)
            self.stacks.close()
            with contextlib.suppress(OSError, EOFError):
                await (
                    starting
                )  # the thread goes on; nobody knows this process yet, and the node's exit would wait for it
                self._process.kill()
            raise
        except (OSError, EOFError):
            self.stacks.close()
            raise
        loop.add_reader(self._process.sentinel, self._on_end)

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def free_slots(self) -> int:
        """Jobs it could begin at once. Negative: it holds prefetched ones."""
        return self._slots - len(self.claims) if self.is_open else 0

    @property
    def is_open(self) -> bool:
        """It takes jobs that may have neighbours."""
        return self.is_up and not (self.is_whole or self.is_reserved or self.is_leaving) and self.kill_reason is None

    @property
    def idle(self) -> bool:
        """It could take a job that must have no neighbour."""
        return self.is_up and not self.claims and not self.is_leaving and self.kill_reason is None

    def send(self, frame: tuple[Any, ...]) -> None:
        self._channel.send(frame)

    def kill(self, reason: Kill) -> None:
        """SIGKILL: no Python or C code can hold it off. The first reason stands."""
        if self.kill_reason is None:
            self.kill_reason = reason
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def interrupt(self, ticket: int, reason: str) -> None:
        """Stops the job of its main thread, which can't read frames meanwhile. Nothing happens if it performs another one."""
        self.notes.ask_to_stop(ticket, reason)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, STOP_SIGNAL)

    @property
    def is_orphaned(self) -> bool:
        """Its forkserver has ended, and with it all its workers: no job is to blame."""
        return self.forked_from is not None and has_ended(self.forked_from)

    def _sent_garbage(self, what: str) -> None:
        """Job code has written to the channel: nothing that comes from there can be trusted any more."""
        self.garbage = what
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def sample(self, now: float) -> None:
        """Reads the resident size and its peak, which are gone once the process is, and whether somebody has stopped it."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            self.peak_memory = max(self.peak_memory, _bytes(status, "VmHWM:"))
            self.memory = _bytes(status, "VmRSS:")
            if status.split("State:", 1)[1].split(None, 1)[0] not in "Tt":
                self._was_running = now

    @property
    def last_sign(self) -> float:
        """When it last was seen to get on, CLOCK_MONOTONIC seconds; 0: its loop has not turned yet.

        While a job has its main thread the loop stands still: then it gets on as long as nobody stops the process.
        """
        in_main = any(claim.job_type.exclusive for claim in self.claims.values())
        return max(self._was_running, self.notes.last_beat) if in_main else self.notes.last_beat

    def cause_of_death(self) -> str:
        """The ended process in words: signal or exit code, likely cause, peak memory."""
        if self.kill_reason is not None:
            return self.kill_reason.detail if self.kill_reason.reason == "memory" else "killed by its node"
        if self.garbage:
            return f"killed by its node, to which it sent what no worker sends ({self.garbage})"
        code = self._process.exitcode
        peak = f"; peak memory at least {self.peak_memory / 2**20:,.0f} MB" if self.peak_memory else ""
        if code is None or code >= 0:
            return f"exit code {code} (the job, or a library, ended the process){peak}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        likely = {
            "SIGKILL": "out of memory" if oom_kills() > self._oom_kills else "killed from outside, or out of memory",
            "SIGSEGV": "a fault in native code",
            "SIGBUS": "a fault in native code, or a full disk under mapped memory",
            "SIGABRT": "native code gave up",
            "SIGILL": "native code built for another processor",
            "SIGFPE": "a fault in native code",
        }.get(name, "sent by somebody")
        return f"{name} ({likely}){peak}"

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        end_group(self.pid)  # what its jobs have started
        self._burial = asyncio.ensure_future(self._read_last_words())

    async def _read_last_words(self) -> None:
        """What it reported just before its end is still on the socket, unless a child of its own keeps that open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._closed.wait()
        await self._await_forkserver()
        self._channel.close()
        self.stacks.close()
        if self.overrun is not None:
            self.overrun.cancel()
        if not self.ended.done():
            self.ended.set_result(None)

    async def _await_forkserver(self) -> None:
        """Nobody told how it ended: most likely since its forkserver is dying, which can be seen only a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORKSERVERS_END):
                while self._process.exitcode == UNTOLD and not self.is_orphaned:
                    await asyncio.sleep(0.005)


def _bytes(status: str, name: str) -> int:
    """Of a line such as `VmRSS: 1234 kB`."""
    return int(status.split(name, 1)[1].split(None, 1)[0]) * 1024


def oom_kills() -> int:
    """How often the kernel has killed for memory in this container. 0 where that can't be known."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split(None, 1) for line in Path(path).read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0
