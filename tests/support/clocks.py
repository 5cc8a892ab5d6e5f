"""A clock that moves when the test says so."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest


def stop_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> SimpleNamespace:
    """In place of a module's `time`; its `now`, in seconds, is what `time.monotonic()` says there."""
    stopped = SimpleNamespace(now=1000.0)
    stopped.monotonic = lambda: stopped.now
    monkeypatch.setattr(module, "time", stopped)
    return stopped
