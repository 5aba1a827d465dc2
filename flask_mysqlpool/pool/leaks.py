"""Where a connection was taken, and what to say when it does not come back.

A stack is noted as code and line numbers, which takes a few microseconds and keeps no
frame alive; its text is looked up only for a report.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import CodeType, FrameType

from .driver.text import quoted

#: The callers of a checkout, the innermost first.
Stack = tuple[tuple[CodeType, int], ...]

#: So many of them are noted.
DEPTH = 50

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def caller(*others: str) -> FrameType:
    """Who is calling, apart from this package, and from what is in these folders."""
    frame = sys._getframe(1)
    folders = (_PACKAGE, *others)
    while frame.f_back and frame.f_code.co_filename.startswith(folders):
        frame = frame.f_back
    return frame


def stack() -> Stack:
    """The caller and its callers, the innermost first."""
    found: list[tuple[CodeType, int]] = []
    walker: FrameType | None = caller()
    while walker is not None and len(found) < DEPTH:
        found.append((walker.f_code, walker.f_lineno))
        walker = walker.f_back
    return tuple(found)


def describe(endpoint: str | None, thread: str | None, stack: Stack) -> str:
    """Who took it, and where: one line, or more if the stack was noted."""
    taken = f"taken for {quoted(endpoint)} by" if endpoint else "taken by"
    taken += f" thread {quoted(thread)}" if thread else " a thread that has ended"
    if not stack:
        return f"{taken}; LEAK_THRESHOLD, if set, would have its stack shown here"
    entries = [
        traceback.FrameSummary(code.co_filename, line, code.co_name)
        for code, line in reversed(stack)
    ]
    return f"{taken}, from:\n{''.join(traceback.format_list(entries))}".rstrip()
