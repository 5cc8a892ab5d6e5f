"""Where --app-dir may stand on the command line."""

from __future__ import annotations

import pytest

from cluster.cli.app import app_dir_first


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (["run"], ["run"]),
        (["--app-dir", "x", "run"], ["--app-dir", "x", "run"]),
        (["run", "--app-dir", "x", "--processes", "2"], ["--app-dir", "x", "run", "--processes", "2"]),
        (["run", "--app-dir=x"], ["--app-dir=x", "run"]),
        (["run", "--app-dir"], ["--app-dir", "run"]),
        (["dev", "--", "server", "--app-dir", "x"], ["dev", "--", "server", "--app-dir", "x"]),
    ],
)
def test_app_dir_may_follow_the_command_but_not_a_double_dash(given: list[str], understood: list[str]) -> None:
    assert app_dir_first(given) == understood
