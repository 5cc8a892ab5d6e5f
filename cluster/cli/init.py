"""`cluster init`: a `jobs` package with one example and its test, and `.env.example`."""

from __future__ import annotations

import typer

JOBS_PACKAGE = '"""The jobs of this application, a module for each."""\n'

_HELLO = '''\
"""An example. Delete it, and its test, when you have a job of your own."""

from cluster import Job


class HelloJob(Job):
    """Greets somebody. One row of table hello_jobs is one greeting."""

    name: str

    async def perform(self) -> None:
        """Logs the greeting."""
        self.log.info(self.greeting())

    def greeting(self) -> str:
        """What to say."""
        return f"Hello, {self.name}!"
'''

_HELLO_TEST = '''\
"""HelloJob greets by name."""

from jobs.hello import HelloJob


def test_hello_greets_by_name() -> None:
    job = HelloJob(name="World")
    assert job.greeting() == "Hello, World!"
    job.perform_now()
'''

_NEXT_STEPS = """
Next:
  cluster dev                            a node that reloads, and its Postgres
  cluster enqueue HelloJob name=World    in another terminal
  cluster status                         what became of it
  cluster generate job EmailCustomers customer_id:int
  python -m pytest tests/jobs
"""


def init() -> None:
    """Write a jobs package with an example and its test."""
    from cluster.cli.files import write_new

    write_new("jobs/__init__.py", JOBS_PACKAGE)
    write_new("jobs/hello.py", _HELLO)
    write_new("tests/jobs/test_hello.py", _HELLO_TEST)
    write_new(".env.example", _env_example())
    typer.echo(_NEXT_STEPS, nl=False)


def _env_example() -> str:
    from cluster.cli.environment_file import environment_file

    return (
        "# Settings of the job cluster: copy to .env and remove the # of what you change.\n"
        "# Nodes read the environment only: `set -a; . ./.env; set +a` before `cluster run`,\n"
        "# or let your process manager load the file.\n\n"
    ) + environment_file()
