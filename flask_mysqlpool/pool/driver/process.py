"""Identify this process. Its process id alone does not, because ids are reused.

A child may have its parent's id, in another PID namespace, or the id of an ancestor
that has exited.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from os import getpid
from typing import Any

#: Makes Linux fill memory with zeros in a child. One byte then tells of a fork without
#: a system call, and without Python's fork hooks, which uWSGI does not run.
MADV_WIPEONFORK = 18


class _ById:
    """A substitute for such memory on other systems: compares process ids."""

    _id = 0

    def __getitem__(self, at: int) -> bool:
        return self._id == getpid()

    def __setitem__(self, at: int, value: int) -> None:
        self._id = getpid() if value else 0


def _wiped_on_fork() -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
    except (AttributeError, OSError):
        return _ById()
    return page


#: Its first byte is 0 in a process that has no number yet.
_page = _wiped_on_fork()
_number = 0
_lock = threading.Lock()


def process() -> int:
    """Return a number that differs from those of all ancestors of this process."""
    return _number if _page[0] else _new_number()


def _new_number() -> int:
    global _number
    with _lock:
        if not _page[0]:
            # The upper half counts forks, and the lower half is the process id.
            _number = ((_number >> 32) + 1 << 32) + getpid()
            _page[0] = 1
        return _number


def is_uwsgi_before_fork() -> bool:
    """Whether this is uWSGI with a preloaded app, and its workers are not forked yet.

    It forks without holding the GIL. If another thread holds it then, the worker waits
    for it forever. So no thread may run until the workers are there.
    """
    uwsgi: Any = sys.modules.get("uwsgi")  # it is built into uWSGI
    if not hasattr(uwsgi, "worker_id") or uwsgi.worker_id():
        return False
    # Mules and spoolers have no worker id either. Without a master, this becomes one
    # of the workers.
    return uwsgi.masterpid() in (0, getpid())


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _page[0] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
