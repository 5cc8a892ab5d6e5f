"""What KEDA and the HorizontalPodAutoscaler make of a wanted number of nodes, second by second.

KEDA takes a deployment from none to one and back, the autoscaler does the rest. The autoscaler's rules are those of its source
(`pkg/controller/podautoscaler`); a test repeats the steps that a real one took.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from bench.results import REPOSITORY

COMPONENT = REPOSITORY / "deploy" / "k8s" / "components" / "keda" / "autoscaler.yaml"
SYNC = 15
"""Seconds between two rounds of the autoscaler."""
TOLERANCE = 0.1
"""By so much the number of replicas may differ from the wanted one."""


class Rules(NamedTuple):
    """Of a ScaledObject: durations in seconds; policies as (type, value, seconds)."""

    polling: int
    cooldown: int
    least: int
    most: int
    up_window: int
    up: tuple[tuple[str, int, int], ...]
    down_window: int
    down: tuple[tuple[str, int, int], ...]

    @classmethod
    def of_component(cls) -> Rules:
        """Those of `deploy/k8s/components/keda`."""
        documents = yaml.safe_load_all(COMPONENT.read_text(encoding="utf-8"))
        (spec,) = (found["spec"] for found in documents if found["kind"] == "ScaledObject")
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        up, down = behavior["scaleUp"], behavior["scaleDown"]
        return cls(
            spec["pollingInterval"], spec["cooldownPeriod"], spec["minReplicaCount"], spec["maxReplicaCount"],
            up["stabilizationWindowSeconds"], _policies(up), down["stabilizationWindowSeconds"], _policies(down),
        )  # fmt: skip


def _policies(rules: dict[str, Any]) -> tuple[tuple[str, int, int], ...]:
    return tuple((policy["type"], policy["value"], policy["periodSeconds"]) for policy in rules["policies"])


@dataclass
class Autoscaler:
    """replicas: that the Deployment asks for."""

    rules: Rules
    replicas: int = 0
    _wanted: deque[tuple[int, int]] = field(default_factory=deque)
    _changes: deque[tuple[int, int]] = field(default_factory=deque)
    _active_at: int = -(10**9)

    def step(self, second: int, metric: float) -> None:
        """metric: the number that the query returns at this second; looked at only when it is time."""
        if second % self.rules.polling == 0:
            self._activate(second, metric)
        if second % SYNC == 0 and self.replicas > 0:
            self.scale(second, metric)

    def scale(self, second: int, metric: float) -> None:
        """One round of the autoscaler."""
        desired = self._desired(second, metric)
        if desired != self.replicas:
            self._changes.append((second, desired - self.replicas))
            self.replicas = desired
        while self._changes and self._changes[0][0] < second - 3600:
            self._changes.popleft()

    def _activate(self, second: int, metric: float) -> None:
        """KEDA's part. The autoscaler's policies do not count what it has not done itself."""
        if metric > 0:
            self._active_at = second
            if self.replicas == 0:
                self.replicas = max(1, self.rules.least)
        elif self.rules.least == 0 and second - self._active_at >= self.rules.cooldown:
            self.replicas = 0

    def _desired(self, second: int, metric: float) -> int:
        """An external metric of type AverageValue with the target 1; never fewer than one."""
        proposal = self.replicas if abs(1 - metric / self.replicas) <= TOLERANCE else math.ceil(metric)
        self._wanted.append((second, proposal))
        longest = max(self.rules.up_window, self.rules.down_window)
        while self._wanted[0][0] < second - longest:
            self._wanted.popleft()
        up = min(value for at, value in self._wanted if at >= second - self.rules.up_window)
        down = max(value for at, value in self._wanted if at >= second - self.rules.down_window)
        desired = max(up, min(down, self.replicas))
        if desired > self.replicas:
            desired = min(desired, max(self._limits(second, self.rules.up, 1)))
        elif desired < self.replicas:
            desired = max(desired, min(self._limits(second, self.rules.down, -1)))
        return min(max(1, self.rules.least, desired), self.rules.most)

    def _limits(self, second: int, policies: tuple[tuple[str, int, int], ...], sign: int) -> list[int]:
        """How far each policy lets it go. What was added or taken in its period counts."""
        limits = []
        for kind, value, period in policies:
            changed = sum(change for at, change in self._changes if at > second - period and change * sign > 0)
            before = self.replicas - changed
            share = before * (1 + sign * value / 100)
            limits.append(before + sign * value if kind == "Pods" else math.ceil(share) if sign > 0 else int(share))
        return limits
