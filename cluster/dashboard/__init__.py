"""The web page on which people watch and steer jobs: an ASGI application for the user's own, or alone with `cluster dashboard`.

It needs the database, not the job code. Package extra: `dashboard`.
"""

from __future__ import annotations

from cluster.dashboard.app import dashboard
from cluster.dashboard.auth import BasicAuth, BasicAuthStatic, NoAuth, User
from cluster.dashboard.job_views import JobView, Scene
from cluster.dashboard.proxy import ProxyHeader

__all__ = ["BasicAuth", "BasicAuthStatic", "JobView", "NoAuth", "ProxyHeader", "Scene", "User", "dashboard"]
