"""Signals: one after a while, or at each instruction of the pool."""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import flask_mysqlpool
from flask_mysqlpool import Pool

#: The modules whose every instruction is tried.
OURS = frozenset(
    str(Path(flask_mysqlpool.__file__).with_name("pool") / f"{name}.py")
    for name in (
        *("pool", "state", "waiters", "connection", "transaction", "sql/cursors"),
        *("driver/session", "driver/transport", "driver/results"),
    )
)


class Interrupt(BaseException):
    """Like a KeyboardInterrupt, but nobody else's."""


@contextmanager
def interrupted_by(kind: type[BaseException], seconds: float = 0.1) -> Iterator[None]:
    """Raise it here, after so many seconds."""

    def interrupt(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Signals:
    """Does something at the n-th moment of a call at which a signal could come."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        # Always the same object: CPython 3.11 uses one that settrace() has let go of.
        self._trace: Callable[..., Any] = self._called
        self._left = 0
        self.where = ""
        #: Of :data:`OURS`, those in which there was a moment.
        self.traced: set[str] = set()

    def sent_during(self, call: Callable[[], object], moment: int) -> bool:
        """Run the call; False if it was over before that moment came."""
        self._left = moment
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        except Interrupt:
            pass
        finally:
            sys.settrace(before)
        return self._left == 0

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        ours = code.co_filename in OURS or code is threading.Thread.start.__code__
        if self._left > 0 and ours:
            self.traced.add(code.co_filename)
            # In this order, and with settrace() again: or Python 3.13, and 3.12, begin
            # with the next call of the function.
            frame.f_trace = self._at_instruction
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            sys.settrace(self._trace)
            return self._at_instruction
        return None

    def _at_instruction(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and self._left > 0:
            if frame.f_lasti in _points_of(frame.f_code):
                self._left -= 1
                if self._left == 0:
                    self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                    self._act()
        return self._at_instruction


@cache
def _points_of(code: CodeType) -> frozenset[int]:
    """Where Python looks for signals: the offsets of these instructions."""
    listing = list(dis.get_instructions(code))
    return frozenset(
        here.offset
        for before, here in zip(listing, listing[1:], strict=False)
        if before.opname.startswith(("RESUME", "CALL", "JUMP_BACKWARD"))
    )


def at_rest(pool: Pool) -> bool:
    """Whether nothing is left behind by those who are gone."""
    pool.maintain()
    stats = pool.stats()
    return stats.in_use == stats.connecting == stats.waiting == 0
