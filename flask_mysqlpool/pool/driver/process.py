"""Which process this is. A number alone does not tell: it is used again.

A child may have its parent's number, in another namespace of them, or that of an
ancestor that has ended.
"""

from __future__ import annotations

import os
from os import getpid

#: Forks between the process that has imported this and this one, times 2**32.
_forks = 0


def process() -> int:
    """Return what tells this process from all that it descends from."""
    # A fork that Python did not see is told by the number.
    return _forks + getpid()


def _after_fork() -> None:
    global _forks
    _forks += 1 << 32


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
