"""Nodes with the same sources have the same identity, wherever these lie; another source is another one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from cluster.code_identity import LENGTH, code_identity


def module(path: Path, text: str) -> ModuleType:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    made = ModuleType(path.stem)
    made.__file__ = str(path)
    return made


def test_the_same_sources_have_the_same_identity_wherever_they_lie(tmp_path: Path) -> None:
    one, other = (
        {"jobs.mail": module(tmp_path / name / "mail.py", "x"), "shop": module(tmp_path / name / "shop.py", "y")}
        for name in ("releases/17", "releases/18")
    )
    assert len(code_identity(["jobs.mail"], one)) == LENGTH
    assert code_identity(["jobs.mail"], one) == code_identity(["jobs.mail"], other)
    module(tmp_path / "releases/18/shop.py", "z")
    assert code_identity(["jobs.mail"], one) != code_identity(["jobs.mail"], other)


def test_libraries_do_not_count_but_an_application_that_is_installed_does(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    jobs, library = module(packages / "shop/jobs.py", "x"), module(packages / "httpx/a.py", "x")
    loaded = {"shop.jobs": jobs, "httpx.a": library, "built_in": ModuleType("built_in")}
    before = code_identity(["shop.jobs"], loaded)
    module(packages / "httpx/a.py", "other")
    assert code_identity(["shop.jobs"], loaded) == before
    module(packages / "shop/jobs.py", "other")
    assert code_identity(["shop.jobs"], loaded) != before
    (packages / "shop/jobs.py").unlink()
    assert code_identity(["shop.jobs"], loaded)
