"""What reads and writes through a handle: cursors that end with its checkout.

They are made of PyMySQL's, or the user's own, and know the session only as the handle
lets them in: between its ``_enter()`` and its ``_leave()``.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from pymysql.cursors import Cursor, SSCursor
from pymysql.err import MySQLError, ProgrammingError

from ..errors import ConnectionLost
from .driver.statements import bare
from .driver.transport import without_traceback


class _BoundCursor(Cursor):
    """Makes a cursor end with the checkout of its connection."""

    connection: Any
    _executed: Any
    _result: Any
    _unbuffered = False

    def _query(self, q: str | bytes) -> int:
        # PyMySQL's, but alone in the connection until the result is the cursor's.
        handle = self.connection or self._get_db()  # type: ignore[attr-defined]
        try:
            con = handle._enter()
        except ConnectionLost:
            if bare(q) not in (b"rollback", b"rollback work"):
                raise
            handle.rollback()
            self._clear_result()  # type: ignore[attr-defined]
            return 0
        try:
            self._clear_result()  # type: ignore[attr-defined]
            con.execute(q, self._unbuffered)
            handle._result = con.raw._result
            self._do_get_result()  # type: ignore[attr-defined]
            return self.rowcount
        finally:
            handle._leave()

    def _nextset(self, unbuffered: bool = False) -> bool | None:
        result = self._result
        if result is None or not result.has_next:
            return None
        handle = self.connection or self._get_db()  # type: ignore[attr-defined]
        con = handle._enter()
        try:
            if result is not con.raw._result:
                return None
            self._clear_result()  # type: ignore[attr-defined]
            con.command("next_result", unbuffered)
            handle._result = con.raw._result
            self._do_get_result()  # type: ignore[attr-defined]
            return True
        finally:
            handle._leave()

    def _check_executed(self) -> None:
        handle = self.connection
        if handle is not None and handle._returned:
            raise handle._refusal()
        if not self._executed:
            raise ProgrammingError("execute() first")

    def close(self) -> None:
        result, handle = self._result, self.connection
        if result is None or not result.has_next or not (handle and handle.open):
            # Nothing can be left to read, and reading is what closing does.
            self.connection = None
        super().close()


class _BoundSSCursor(_BoundCursor, SSCursor):
    """The same for cursors that read rows as they are asked for."""

    _unbuffered = True

    def read_next(self) -> Any:
        result = self._result
        if self.connection is None:
            return None
        if not result.unbuffered_active:
            if result.connection is not None:
                # PyMySQL takes an error of the server for the end of the rows.
                raise getattr(result, "ended_by", None) or ConnectionLost(
                    "the connection was lost, with rows unread"
                )
            return None
        handle = self.connection
        con = handle._enter()
        try:
            return con.attempt(super().read_next)
        except MySQLError as error:
            if con.lost is None:
                result.ended_by = without_traceback(error)
            raise
        finally:
            handle._leave()

    def close(self) -> None:
        # PyMySQL reads on to the last row here. Rows that nobody reads cost the
        # connection when it is returned, which is cheaper; and if there is a next
        # statement, it reads them.
        self.connection = None
        if self._result is not None:
            self._result.unwanted = True

    __del__ = close


#: The method of PyMySQL's that its execute() has the values filled in by.
_FILL_IN = "_mogrify" if hasattr(Cursor, "_mogrify") else "mogrify"


def _execute(cursor: Any, query: str | bytes, args: Any = None) -> int:
    """Execute a statement as PyMySQL does, but for calls that have nothing to do."""
    if cursor._result is not None:
        while cursor.nextset():
            pass
    if args is not None:
        query = getattr(cursor, _FILL_IN)(query, args)
    found: int = cursor._query(query)
    cursor._executed = query
    return found


#: The calls that use a connection while they run; see ``PooledConnection._is_in_use``.
CALLS = frozenset(
    method.__code__
    for method in (_BoundCursor._query, _BoundCursor._nextset, _BoundSSCursor.read_next)
)


class _RecordingCursor(Cursor):
    """Notes what it executes, and how long that took."""

    connection: Any
    _unbuffered: bool

    #: Whether what is executed is a part of what is noted anyway.
    _noting = False

    def execute(self, query: str | bytes, args: Any = None) -> int:
        found: int = self._noted(query, args, super().execute, query, args)
        return found

    def executemany(self, query: str | bytes, args: Any) -> Any:
        # PyMySQL would have execute() see the values filled in.
        return self._noted(query, args, super().executemany, query, args)

    def callproc(self, procname: str, args: Any = ()) -> Any:
        return self._noted(f"CALL {procname}", args, super().callproc, procname, args)

    def _noted(
        self, query: str | bytes, args: Any, call: Callable[..., Any], *its: Any
    ) -> Any:
        handle = self.connection
        if self._noting or handle is None or handle._pool.recorder is None:
            return call(*its)
        self._noting, started, rows = True, perf_counter(), None
        try:
            found = call(*its)
            rows = None if self._unbuffered else self.rowcount
            return found
        finally:
            self._noting = False
            note = handle._pool.recorder.note
            note(query, args, started, handle.endpoint, rows)


#: By the class that they are made from, for none is made twice.
BOUND: dict[type[Cursor], type[Cursor]] = {}
RECORDING: dict[type[Cursor], type[Cursor]] = {}


def bound_class(cls: type[Cursor]) -> type[Cursor]:
    """What stands in for one of PyMySQL's classes, or of the user's; see ``BOUND``."""
    base = _BoundSSCursor if issubclass(cls, SSCursor) else _BoundCursor
    # It may be the class of a cursor that came from here.
    bound = cls if issubclass(cls, base) else _combined(base, cls)
    if cls.execute is Cursor.execute:  # not one of the user's
        bound.execute = _execute  # type: ignore[assignment]
    return BOUND.setdefault(cls, bound)


def recording_class(bound: type[Cursor]) -> type[Cursor]:
    """What stands in for one of these, to record statements; see ``RECORDING``."""
    own = issubclass(bound, _RecordingCursor)
    recording = bound if own else _combined(_RecordingCursor, bound)
    return RECORDING.setdefault(bound, recording)


def _combined(first: type[Cursor], cls: type[Cursor]) -> type[Cursor]:
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (first, cls), names)
