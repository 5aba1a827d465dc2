"""Identify this process. Its process id alone does not, because ids are reused.

A child may have its parent's id, in another PID namespace, or the id of an ancestor
that has exited.
"""

from __future__ import annotations

import os
from os import getpid

#: The number of forks since this module was imported, times 2**32.
_forks = 0


def process() -> int:
    """Return a number that differs from those of all ancestors of this process."""
    # After a fork that does not run Python's hooks, the process id differs.
    return _forks + getpid()


def _after_fork() -> None:
    global _forks
    _forks += 1 << 32


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
