"""Keeps the deletion cost of this node's pod: when Kubernetes takes pods away, those go first that run least.

Only where the pod's service account may patch pods, see docs/kubernetes.md. Nothing depends on it: what fails is said once, and
tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
from collections.abc import Callable
from pathlib import Path

from cluster import events
from cluster.settings import Pod

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the token and the certificate of the API server's authority are; both change, so they are read each time."""
ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
INTERVAL = 10.0
"""Seconds between two looks at what runs: each change is a write for the API server, and news for everybody who watches pods."""
RETRY, RETRY_REFUSED = 60.0, 600.0
"""Seconds after a failure, and after an answer that will hardly change, such as 403."""
PATIENCE = 5.0
"""Seconds for each step of a request."""


class RefusedError(Exception):
    """The API server's answer was not 200."""


class DeletionCost:
    """`tick` is one look. running: how many jobs this node has. account: folder with `token` and `ca.crt`."""

    def __init__(self, pod: Pod, running: Callable[[], int], account: Path = ACCOUNT) -> None:
        self._pod = pod
        self._running = running
        self._account = account
        self._told: int | None = None
        """What the API server knows. None: nothing yet."""
        self._has_failed = False
        """Since it last worked."""

    async def tick(self) -> float:
        """Returns the seconds until the next one."""
        cost = self._running()
        if not _differs(self._told, cost):
            return INTERVAL
        try:
            await asyncio.to_thread(self._patch, cost)  # not a matter for the coordinator's loop
        except (OSError, ValueError, http.client.HTTPException, RefusedError) as error:
            self._told = None  # an answer may have been lost
            if not self._has_failed:
                events.deletion_cost_failed(self._pod.name, error)
            self._has_failed = True
            return RETRY_REFUSED if isinstance(error, RefusedError) else RETRY
        self._told, self._has_failed = cost, False
        return INTERVAL

    def _patch(self, cost: int) -> None:
        token = (self._account / "token").read_text(encoding="ascii").strip()
        trusted = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        connection = http.client.HTTPSConnection(
            self._pod.api_host, self._pod.api_port, timeout=PATIENCE, context=trusted
        )
        with contextlib.closing(connection):
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{self._pod.namespace}/pods/{self._pod.name}",
                json.dumps({"metadata": {"annotations": {ANNOTATION: str(cost)}}}),
                {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            )
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise RefusedError(f"{response.status} {response.reason}")


def deletion_cost(pod: Pod | None, running: Callable[[], int], account: Path = ACCOUNT) -> DeletionCost | None:
    """None: this is no pod, or one without a token."""
    return DeletionCost(pod, running, account) if pod is not None and (account / "token").exists() else None


def _differs(told: int | None, cost: int) -> bool:
    """By enough to tell pods apart: none and some, or a third more or fewer."""
    return told is None or (told == 0) != (cost == 0) or abs(cost - told) > told / 3
