"""What the system may not have for a node: files that may be open, a place for sockets and shared memory. Said in one line."""

from __future__ import annotations

import errno
import resource
import tempfile

from cluster.errors import SettingsError

FILES, FILES_OF_WORKER = 160, 8
"""Open files of a coordinator, with 64 clients at its HTTP port, and those that each of its workers adds."""


def reserve_files(processes: int) -> None:
    """Raises the limit of open files as far as it takes. SettingsError: the system does not allow that many."""
    needed = FILES + FILES_OF_WORKER * processes
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SettingsError(
            f"a node with CLUSTER_PROCESSES={processes} needs {needed} open files, and the system allows {hard}: "
            "raise the limit (ulimit -n, LimitNOFILE= in a systemd unit), or have fewer processes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def explained(error: OSError) -> str:
    """Why a worker process could not be started. Empty: since the process that forks them has died, which says nothing."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return ""
    if "AF_UNIX path too long" in str(error):
        folder = tempfile.gettempdir()
        return f"the path of temporary files is too long for a socket ({len(folder)} characters): set TMPDIR to a shorter one"
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "too many files are open: raise the limit (ulimit -n, LimitNOFILE= in a systemd unit)"
    if error.errno in {errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT}:
        advice = "set TMPDIR to a folder that can be, and see that /dev/shm is not full"
        return f"temporary files can't be written ({error.strerror}): {advice}"
    return str(error)
