"""Describe a pool: statistics, connections, timeouts and leaks.

The state is read at once, with the lock held; texts are made afterwards.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterable
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from ..errors import PoolError, PoolTimeout
from .driver.logs import kind, plain, quoted
from .driver.session import Session
from .driver.transport import DRIVER
from .state import PoolState
from .stats import ConnectionStats, PoolStats, Times

#: The stack of a checkout, innermost frame first: code and line number.
Stack = tuple[tuple[CodeType, int], ...]

#: Maximum number of frames that are recorded.
DEPTH = 50

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def caller(*others: str) -> FrameType:
    """Return the innermost frame outside this package and outside these folders."""
    frame = sys._getframe(1)
    folders = (_PACKAGE, *others)
    while frame.f_back and frame.f_code.co_filename.startswith(folders):
        frame = frame.f_back
    return frame


def stack() -> Stack:
    """Return the stack outside this package."""
    frames = islice(traceback.walk_stack(caller()), DEPTH)
    return tuple((frame.f_code, line) for frame, line in frames)


def describe(endpoint: str | None, thread: str | None, stack: Stack) -> str:
    """Return the purpose, the thread and, if recorded, the stack of a checkout."""
    taken = f"taken for {quoted(endpoint)} by" if endpoint else "taken by"
    taken += f" thread {quoted(thread)}" if thread else " a thread that has ended"
    if not stack:
        return f"{taken}; set LEAK_THRESHOLD to show its stack here"
    entries = [
        traceback.FrameSummary(code.co_filename, line, code.co_name)
        for code, line in reversed(stack)
    ]
    return f"{taken}, from:\n{''.join(traceback.format_list(entries))}".rstrip()


def snapshot(state: PoolState, killed: int, now: float) -> PoolStats:
    """Return a snapshot of a pool; called with its lock held."""
    config, generation = state.config, state.generation
    everything = state.open()
    first = next(iter(state.waiters), None)
    outdated = sum(con.generation != generation for con in everything)
    checkouts = state.past_uses + sum(con.uses for con in everything)
    uses = _sum([state.past_times, *(con.times for con in everything)])
    waits = _sum([state.waits])
    # Only checkouts that waited are recorded; the others belong to the first bucket.
    waits.counts[0] += checkouts - sum(waits.counts)
    return PoolStats(
        name=config.name,
        min_size=config.min_size,
        max_size=config.max_size,
        limit=state.limit,
        closed=state.closed,
        size=state.size(),
        idle=len(state.idle),
        in_use=len(state.in_use),
        connecting=len(state.connects),
        waiting=len(state.waiters),
        waited=now - first.since if first else 0.0,
        generation=generation,
        outdated=outdated + state.connects.outdated(generation),
        paused=state.paused,
        short=state.host_limit_reached and first is not None and state.has_room(),
        pipelining=all(con.pipelines for con in everything),
        checkouts=checkouts,
        timeouts=state.timeouts,
        last_timeout=state.last_timeout,
        last_connect_failure=state.connects.failed_at,
        connect_error=_text_of(state.connects.last_error),
        failing=state.connects.failing,
        opened=state.opened,
        discarded=state.discarded.total(),
        discarded_by_reason=dict(state.discarded),
        killed=killed,
        wait_seconds=waits.snapshot(),
        use_seconds=uses.snapshot(),
        create_seconds=state.creates.snapshot(),
    )


def _sum(parts: Iterable[Times]) -> Times:
    total = Times()
    for part in parts:
        total.merge(part)
    return total


def _text_of(error: BaseException | None) -> str | None:
    """Return an error as the mysql client prints it; for a foreign one, its class.

    The text of an error raised by a ``PASSWORD`` function may contain a secret.
    """
    if isinstance(error, (DRIVER.MySQLError, PoolError)):
        return ": ".join(map(plain, error.args))
    return None if error is None else kind(error)


def connections(state: PoolState, now: float) -> list[ConnectionStats]:
    """List the open connections: first those in use, longest held first."""
    with state.lock:
        in_use = [(con, "in_use", owner()) for con, owner in state.in_use.items()]
        idle = [(con, "idle", None) for con in reversed(state.idle)]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        ConnectionStats(
            thread_id=con.raw.thread_id(),
            state=label,
            since=now - con.since,
            endpoint=getattr(holder, "endpoint", None)
            or (names.get(con.holder) if holder else None),
            age=now - con.opened,
        )
        for con, label, holder in [*in_use, *idle]
    ]


def timeout(state: PoolState, started: float, now: float) -> PoolTimeout:
    """Return the error for a checkout that ran out of time."""
    config = state.config
    with state.lock:
        # Without those whose checkout is not done yet.
        held = ((con, owner) for con, owner in state.in_use.items() if con.holder)
        oldest, owner = next(held, (None, None))
        endpoint = getattr(owner and owner(), "endpoint", None)
        text = (
            f"{config.name}: no connection within {now - started:.2f} s:"
            f" in use {len(state.in_use)}/{config.max_size},"
            f" waiting {len(state.waiters)}, connecting {len(state.connects)}"
            + ", paused" * state.paused
            + ", and this host's MAX_HOST_CONNECTIONS are taken"
            * state.host_limit_reached
        )
        cause = state.connects.error
        in_use = len(state.in_use) or None
        mine = sum(con.holder == threading.get_ident() for con in state.in_use)
    if oldest:
        text += f"; held longest: {now - oldest.since:.2f} s by thread"
        text += f" {quoted(_holder(oldest) or 'that has ended')}"
        text += f", for {quoted(endpoint)}" if endpoint else ""
    if mine:
        text += f"; this thread itself holds {mine}"
    if mine == in_use:
        text += ", so it waits for itself: return one before taking another"
    error = PoolTimeout(text)
    error.__cause__ = cause
    return error


def drop(pool: str, con: Session) -> str:
    """Return the report about a connection that was dropped without a checkin."""
    assert con.dropped_by is not None
    origin = describe(con.dropped_by[0], _holder(con), con.dropped_by[1])
    return f"{pool}: a connection was dropped without being returned; {origin}"


def leak(pool: str, con: Session, handle: Any, held: float) -> str:
    """Return the report about a connection that has been held for too long."""
    origin = describe(handle.endpoint, _holder(con), handle.stack)
    return f"{pool}: a connection has been in use for {held:.1f} s; {origin}"


def _holder(con: Session) -> str | None:
    """Return the name of the thread that checked it out; None if it has ended."""
    # Not enumerate(): if thousands of checkouts time out, each would list all threads.
    thread = threading._active.get(con.holder)  # type: ignore[attr-defined]
    return None if thread is None else str(thread.name)
