"""Metrics that job code keeps with prometheus-client: what has changed goes to the coordinator, which adds up its workers.

prometheus-client makes a value object for each of its series; here it makes ours, which note that they have changed. So nothing
is collected, and what has not changed costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any

from prometheus_client import values

_changed: deque[ReportedValue] = deque()
"""Those to report, each once."""


class ReportedValue:
    """The value of one series, made with the arguments that prometheus-client gives those of several processes."""

    def __init__(
        self,
        kind: str,
        family: str,
        name: str,
        label_names: Sequence[str],
        labels: Sequence[str],
        text: str,
        multiprocess_mode: str = "",
    ) -> None:
        self.series = (kind, family, name, list(label_names), list(labels), text, multiprocess_mode)
        self.number = -1
        """By which the coordinator knows the series. Negative: it has not been told of it."""
        self._is_gauge = kind == "gauge"
        self._value = 0.0
        self._added = 0.0
        """Since it was last reported."""
        self._lock = Lock()
        self._is_changed = True
        _changed.append(self)  # shown from the start, at zero

    def get(self) -> float:
        return self._value

    def inc(self, amount: float) -> None:
        with self._lock:
            self._value += amount
            self._added += amount
            self._change()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Of a gauge; of a counter its reset, which what has been counted does not undo."""
        with self._lock:
            self._value = value
            self._change()

    def _change(self) -> None:
        if not self._is_changed:
            self._is_changed = True
            _changed.append(self)

    def take(self) -> float:
        """What a gauge is; by how much anything else has grown since this was last asked."""
        with self._lock:
            self._is_changed = False
            added, self._added = self._added, 0.0
            return float(self._value if self._is_gauge else added)

    def get_exemplar(self) -> None:
        """None is kept, as prometheus-client keeps none for several processes."""

    def set_exemplar(self, exemplar: object) -> None:
        pass


def report_values() -> None:
    """From here on the values that prometheus-client makes are reported, whatever PROMETHEUS_MULTIPROC_DIR says."""
    values.ValueClass = ReportedValue


class Reporter:
    """Makes the frames. One in a process, since it numbers the series."""

    def __init__(self) -> None:
        self._numbered = 0

    def frame(self) -> tuple[Any, ...] | None:
        """What has changed since the last one; None: nothing."""
        if not _changed:
            return None
        new, changes = [], []
        for _ in range(len(_changed)):  # others may come meanwhile
            value = _changed.popleft()
            if value.number < 0:
                value.number, self._numbered = self._numbered, self._numbered + 1
                new.append(value.series)
            changes.append((value.number, value.take()))
        return "metrics", new, changes
