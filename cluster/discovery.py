"""Finds job classes: imports the modules that are named and looks into their namespaces.

Called by the command line, by every worker at its start and by tests. Changes sys.path and sys.modules, nothing else.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from cluster.errors import JobImportError
from cluster.job import Job, definition


def import_jobs(
    names: Sequence[str], app_dir: Path | None = None, importing: Callable[[str], None] = lambda _: None
) -> list[type[Job]]:
    """The job classes in these modules, and in all submodules of those that are packages, by name.

    app_dir: put first on sys.path; None: the working directory. A class that a module only imports counts as well.
    importing: called with the name of each module before it is imported.
    JobImportError: a module can't be imported, two classes share a name or a table, or there is none.
    """
    folder = (app_dir or Path.cwd()).resolve()
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    modules = [module for name in names for module in _import_all(name, folder, importing)]
    found = sorted(_job_classes(modules), key=lambda job_class: (job_class.__name__, job_class.__module__))
    if not found:
        where = f"no job class in {', '.join(names)}" if names else "no job modules are named"
        raise JobImportError(
            f"{where}: set CLUSTER_JOBS to the modules or packages that define jobs, such as CLUSTER_JOBS=app.jobs,"
            " and in them a class EmailJob(cluster.Job) with a method perform"
        )
    _refuse_twins(found)
    return found


def _import_all(name: str, folder: Path, importing: Callable[[str], None]) -> Iterator[ModuleType]:
    importing(name)
    module = _import(name, folder)
    yield module
    for submodule in sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", ()))):
        if submodule != "__main__":
            yield from _import_all(f"{name}.{submodule}", folder, importing)


def _import(name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a user's module may raise
        place = _place(error, folder)
        if isinstance(error, ModuleNotFoundError) and not place and f"{name}.".startswith(f"{error.name}."):
            raise JobImportError(_not_found(name, folder)) from error
        message = str(error).partition("\n")[0]
        raise JobImportError(f"can't import {name}: {type(error).__name__}: {message}{place}") from error


def _job_classes(modules: Iterable[ModuleType]) -> set[type[Job]]:
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Job) and value.__definition__ is not None
    }


def _refuse_twins(job_classes: Iterable[type[Job]]) -> None:
    by_name: dict[str, type[Job]] = {}
    by_table: dict[str, type[Job]] = {}
    for job_class in job_classes:
        made = definition(job_class)
        for key, seen, what in ((made.name, by_name, "the name"), (made.table, by_table, "the table")):
            other = seen.setdefault(key, job_class)
            if other is not job_class:
                raise JobImportError(
                    f"{_full_name(other)} and {_full_name(job_class)} both have {what} {key}: rename one,"
                    " or import only one of them"
                )


def _full_name(job_class: type[Job]) -> str:
    return f"{job_class.__module__}.{job_class.__qualname__}"


# --- what to say when an import fails ---


def _place(error: BaseException, folder: Path) -> str:
    """Where in the user's code it happened, as ` (jobs/email.py:3)`; empty: not in code of the user's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_short(error.filename, folder)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if _is_users(frame.filename, folder):
            return f" ({_short(frame.filename, folder)}:{frame.lineno})"
    return ""


_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURSELVES = str(Path(__file__).parent)


def _is_users(file_name: str, folder: Path) -> bool:
    path = Path(file_name)
    if file_name.startswith("<") or path.is_relative_to(_OURSELVES):
        return False
    # A virtual environment often lies inside the project's folder.
    in_library = "site-packages" in path.parts or any(path.is_relative_to(library) for library in _LIBRARIES)
    return not in_library or (path.is_relative_to(folder) and "site-packages" not in path.parts)


def _short(file_name: str, folder: Path) -> str:
    path = Path(file_name)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file_name


def _not_found(name: str, folder: Path) -> str:
    """The first part of the name that does not exist, and what is there instead."""
    parent, known, place = "", _modules_in([str(folder)]), str(folder)
    for part in name.split("."):
        if part not in known:
            break
        parent = f"{parent}.{part}".lstrip(".")
        module = sys.modules.get(parent)
        known = _modules_in(getattr(module, "__path__", ()))
        place = f"package {parent}" if hasattr(module, "__path__") else f"{parent}, which is not a package"
    close = difflib.get_close_matches(part, known, n=1, cutoff=0.6)
    missing = f"{parent}.{part}".lstrip(".")
    if close:
        return f"there is no module {missing}: did you mean {f'{parent}.{close[0]}'.lstrip('.')!r}?"
    listed = f"it has {', '.join(known[:8])}" if known else "it has no modules"
    return f"there is no module {missing} in {place}: {listed}; check CLUSTER_JOBS and --app-dir"


def _modules_in(path: Iterable[str]) -> list[str]:
    """Modules and packages, and folders that could be packages without an __init__.py."""
    folders = [Path(entry) for entry in path]
    plain = {
        child.name
        for folder in folders
        if folder.is_dir()
        for child in folder.iterdir()
        if child.is_dir() and child.name.isidentifier() and any(child.glob("*.py"))
    }
    return sorted(plain | {info.name for info in pkgutil.iter_modules(map(str, folders))})
