"""All commands in the order of the help, the options before them, and how every command ends.

The only place that turns errors into a line on stderr and an exit code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psycopg
import typer
from typer.core import TyperGroup

from cluster.cli import (
    cancel,
    clear,
    dashboard,
    demo,
    dev,
    drain,
    enqueue,
    errors,
    generate,
    init,
    migrate,
    pause,
    run,
    schedule,
    settings,
    start,
    status,
    stop,
    why,
    work,
    workoff,
)
from cluster.cli.database import is_unreachable
from cluster.errors import ClusterError, ExitCode, Terminated

START = "Start a project"
RUN = "Run jobs"
OPERATE = "Look and act"


class ClusterGroup(TyperGroup):
    """Ends with one line on stderr where a command raises an error that its user can do something about."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes --app-dir behind the command as well as before it: `cluster run --app-dir DIR`."""
        return super().parse_args(ctx, app_dir_first(args))

    def invoke(self, ctx: Any) -> Any:  # Any: older typers pass click's Context, newer ones their own
        """Runs the command. Any other error is a bug, and shows where."""
        try:
            return super().invoke(ctx)
        except ClusterError as error:
            _end(str(error), error.exit_code)
        except psycopg.Error as error:
            if is_unreachable(error):
                _end(f"the connection to Postgres broke: {error}: try again", ExitCode.DATABASE_UNREACHABLE)
            _end(_refusal(error), ExitCode.ERROR)
        except Terminated:
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def app_dir_first(arguments: list[str]) -> list[str]:
    """The arguments with --app-dir in front. What follows `--` is somebody else's command line."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for place, argument in enumerate(arguments[:end]):
        if argument == "--app-dir" or argument.startswith("--app-dir="):
            length = 2 if argument == "--app-dir" else 1
            found = arguments[place : place + length]
            return [*found, *arguments[:place], *arguments[place + length :]]
    return arguments


def _end(message: str, code: ExitCode) -> NoReturn:
    typer.echo(f"cluster: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def _refusal(error: psycopg.Error) -> str:
    """What Postgres said. A detail that repeats the whole row is left out: it says less than the message."""
    parts = [error.diag.message_primary or str(error), error.diag.message_detail, error.diag.message_hint]
    return ": ".join(part.rstrip(".") for part in parts if part and not part.startswith("Failing row"))


app = typer.Typer(
    cls=ClusterGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    # A traceback with local variables would print secrets.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from cluster import __version__

        typer.echo(f"jobcluster {__version__}")
        raise typer.Exit


@app.callback()
def options(
    app_dir: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="The application's folder: jobs are imported from it, .cluster is looked for in it. "
            "Default: the working directory.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Background jobs on Postgres: a job type is a table, a job is a row.

    Settings are environment variables: see [bold]cluster settings[/bold].
    """
    if app_dir is not None:
        # Everything that asks for the working directory, the workers included, then means this folder.
        os.chdir(app_dir)


app.command(rich_help_panel=START)(init.init)
app.add_typer(generate.app, name="generate", rich_help_panel=START)
app.command(rich_help_panel=START)(migrate.migrate)
app.command(rich_help_panel=START)(dev.dev)
app.command(rich_help_panel=START)(demo.demo)
app.command(rich_help_panel=RUN)(run.run)
app.command(rich_help_panel=RUN)(work.work)
app.command(rich_help_panel=RUN)(workoff.workoff)
app.command(rich_help_panel=RUN)(start.start)
app.command(rich_help_panel=RUN)(stop.stop)
app.command(rich_help_panel=RUN)(stop.restart)
app.command(rich_help_panel=RUN)(enqueue.enqueue)
app.command(rich_help_panel=OPERATE)(status.status)
app.command(rich_help_panel=OPERATE)(why.why)
app.command(rich_help_panel=OPERATE)(errors.errors)
app.command(rich_help_panel=OPERATE)(pause.pause)
app.command(rich_help_panel=OPERATE)(pause.resume)
app.command(rich_help_panel=OPERATE)(drain.drain)
app.command(rich_help_panel=OPERATE)(drain.undrain)
app.add_typer(schedule.app, name="schedule", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(cancel.cancel)
app.command(rich_help_panel=OPERATE)(cancel.retry)
app.command(rich_help_panel=OPERATE)(clear.clear)
app.command(rich_help_panel=OPERATE)(dashboard.dashboard)
app.command(rich_help_panel=OPERATE)(settings.settings)
