"""The file in which one process publishes the status of one pool.

Its owner holds an ``flock`` on it for as long as the process lives, however it ends; a
file that can be locked belongs to a worker that has exited. The name is random and
identifies the worker: process ids are used again, and containers may share them.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from .records import (
    Unusable,
    create_file,
    is_at,
    lock_byte,
    lock_file,
    user_name,
    write_record,
)
from .status_dir import NEW, PATIENCE, STATUS, StatusDir


class StatusFile:
    """The status that one pool of this process publishes."""

    def __init__(self, status_dir: StatusDir) -> None:
        self._status_dir = status_dir
        self._fd: int | None = None
        self._name = ""
        #: Bytes of the last record; 0 if it could not be written.
        self._size = 0
        self._removed = False
        # Another thread that closed the file during a write could have the number go to
        # a file of its own, which would then be written to.
        self._lock = threading.Lock()
        _FILES.add(self)

    @property
    def id(self) -> str:
        """The id by which readers know the worker."""
        return self._name.removesuffix(STATUS)

    def write(self, content: Mapping[str, Any]) -> None:
        """Publish this record in place of the last one."""
        with self._lock:
            if not self._removed:
                self._write_locked(content)

    def _write_locked(self, content: Mapping[str, Any]) -> None:
        if self._fd is not None and not is_at(self._path, self._fd):
            self._close()
        self._size = 0
        if self._fd is None:
            self._create(content)
        else:
            self._size = write_record(self._fd, content)

    def touch(self) -> bool:
        """Send a heartbeat; False if the file has to be written again."""
        with self._lock:
            fd = self._fd
            if self._removed or fd is None:
                return self._removed
            if not 0 < self._size <= os.fstat(fd).st_size or not is_at(self._path, fd):
                return False
            os.utime(fd)
            return True

    def try_out(self) -> None:
        """Create, lock, write, rename and remove a file, as workers do."""
        with self._lock:
            fd = self._create({}, NEW)
            try:
                lock_byte(fd, 0)
                os.utime(fd)
            finally:
                self._close()
                os.unlink(self._path)

    def remove(self, last: Mapping[str, Any] | None = None) -> None:
        """Publish a last record, remove the file, and write none again."""
        before, self._removed = self._removed, True
        if not self._lock.acquire(timeout=PATIENCE):
            return  # a disk that hangs; the lock ends with the process
        try:
            if last is not None and not before:
                self._write_locked(last)
        finally:
            if self._fd is not None:
                # If that fails, the next process that finds the file unlocked does it.
                with suppress(OSError):
                    self._status_dir.read_with_exited(self._name)
                self._close()
            self._lock.release()

    def detach_after_fork(self) -> None:
        """Leave the file to the parent process; called in the child."""
        self._lock = threading.Lock()
        self._close()

    @property
    def _path(self) -> str:
        return os.path.join(self._status_dir.path, self._name)

    def _create(self, content: Mapping[str, Any], suffix: str = STATUS) -> int:
        name = secrets.token_hex(8)
        with self._status_dir.opened(create=True) as folder:
            owner = os.fstat(folder).st_uid
            if suffix == STATUS and owner != os.geteuid():
                fault = f"belongs to {user_name(owner)}, as whom this does not run"
                fix = f"chown it to {user_name(os.geteuid())}, or run the site as its"
                raise Unusable(self._status_dir.path, fault, fix + " owner")
            # Set at once: if another thread forks, its child has to close it.
            fd = self._fd = create_file(folder, name + NEW)
            try:
                # Locked and written before its final name tells readers of it.
                lock_file(fd)
                size = write_record(fd, content)
                os.rename(
                    name + NEW, name + suffix, src_dir_fd=folder, dst_dir_fd=folder
                )
            except BaseException:
                with suppress(OSError):
                    os.unlink(name + NEW, dir_fd=folder)
                self._close()
                raise
        self._name, self._size = name + suffix, size
        return fd

    def _close(self) -> None:
        """Close the file. Unlocking would end the lock of a parent process, too."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def try_out(status_dir: StatusDir) -> None:
    """Raise :exc:`OSError` if this user could not publish; leaves no file behind."""
    status_dir.check_access()
    if os.path.lexists(status_dir.path):
        StatusFile(status_dir).try_out()


_FILES: WeakSet[StatusFile] = WeakSet()


def _after_fork() -> None:
    for file in list(_FILES):
        file.detach_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
