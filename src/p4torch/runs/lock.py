"""One run at a time in a folder."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p4torch.errors import ArgumentError

#: The file that says who runs here. It is there while a run is, or after one was killed.
LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """A folder, for this run alone. The lock is the operating system's and ends with the process, however that ends:
    what a killed run has left is taken over, and its temporary files are removed.

    Raises:
        ArgumentError: another run is in the folder; the message names its process.
    """
    path = out / LOCK
    descriptor = _open(path)
    try:
        os.truncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        remove_temporary_files(out)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is gone: nobody waits for a file that is no longer here
        os.close(descriptor)


def _open(path: Path) -> int:
    """The lock's file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(descriptor):
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ArgumentError.of("out", "a folder in which no other run is", f"{path.parent}, with {holder}")
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # whoever had it has removed the file meanwhile


def remove_temporary_files(out: Path) -> None:
    """Those that `write_whole` of processes that are gone has left, in the folder and below it."""
    for path in out.rglob(".*.tmp"):
        name = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if name and not _alive(int(name[1])):
            path.unlink(missing_ok=True)


if sys.platform == "win32":

    def _lock(descriptor: int) -> bool:
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # behind what is written, which others read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _alive(process: int) -> bool:
        return False

else:

    def _lock(descriptor: int) -> bool:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def _alive(process: int) -> bool:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True
