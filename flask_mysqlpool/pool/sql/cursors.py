"""Cursors that end with the checkout of their connection.

Their classes are derived from PyMySQL's, or the user's own. They use the session only
between ``_enter()`` and ``_leave()`` of the handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pymysql.cursors import RE_INSERT_VALUES, Cursor, DictCursor, SSCursor
from pymysql.err import MySQLError, ProgrammingError

from ...errors import ConnectionLost
from ..driver.results import Result, make_dict_maker
from ..driver.statements import bare
from ..driver.transport import without_traceback
from .rows import RowCursor, make_row_maker
from .templates import is_template, plain

#: Kinds of cursors: those of tuples, and those of what a function makes of many tuples
#: at once, if the user has overridden no method that makes rows; and all others, for
#: which PyMySQL makes the rows one by one.
TUPLES, MADE, OTHERS = range(3)


class PooledCursor(Cursor):
    """A cursor that ends with the checkout of its connection.

    It is of ``CURSORCLASS`` or the class that was passed to ``cursor()``, and has
    PyMySQL's methods. To type checkers, its rows are of any type.
    """

    if TYPE_CHECKING:

        def fetchone(self) -> Any: ...
        def fetchmany(self, size: int | None = None) -> tuple[Any, ...]: ...
        def fetchall(self) -> tuple[Any, ...]: ...
        def __iter__(self) -> Iterator[Any]: ...

    connection: Any
    _executed: Any
    _result: Any
    _rows: Any
    _unbuffered = False
    _kind = OTHERS
    #: Makes that function, for the names of the columns.
    _make_maker: Any = None
    #: Whether rows come as they are to be returned.
    _is_ready = False

    def _query(self, q: str | bytes) -> int:
        """Execute a statement as PyMySQL does, with exclusive use of the session."""
        handle = self.connection or self._get_db()  # type: ignore[attr-defined]
        if self._result is not None:
            self._clear_result()  # type: ignore[attr-defined]
        try:
            con = handle._enter()
        except ConnectionLost:
            self._clear_result()  # type: ignore[attr-defined]
            if bare(q) not in (b"rollback", b"rollback work"):
                raise
            handle.rollback()
            return 0
        try:
            self._take_over(con.execute(q, self._unbuffered))
            return self.rowcount
        except BaseException:
            if self._result is None:
                self._clear_result()  # type: ignore[attr-defined]
            raise
        finally:
            handle._leave()

    def callproc(self, procname: str, args: Any = ()) -> Any:
        if self.connection is not None:
            self.connection._settle_mode()
        return super().callproc(procname, args)

    def _take_over(self, result: Any) -> None:
        """Present a new result, as PyMySQL's ``_do_get_result()`` does."""
        self.connection._result = result
        kind = self._kind
        if kind == OTHERS:
            self._clear_result()  # type: ignore[attr-defined]
            self._do_get_result()  # type: ignore[attr-defined]
            return
        if kind == MADE:
            self._is_ready = isinstance(result, Result)
            if not self._is_ready:
                self._do_get_result()  # type: ignore[attr-defined]
                return
            if result.description:
                self._fields = result.make_rows(self._make_maker)
        self._result = result
        self.rownumber = 0
        self.rowcount = result.affected_rows
        self.warning_count = result.warning_count
        self.description = result.description
        self.lastrowid = result.insert_id
        self._rows = result.rows

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
            self._take_over(con.raw._result)
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
            # There is nothing left to read, so keep super().close() from reading.
            self.connection = None
        super().close()


class _BoundSSCursor(PooledCursor, SSCursor):  # type: ignore[misc]
    """The same for unbuffered cursors, which read rows one by one."""

    _unbuffered = True

    def read_next(self) -> Any:
        result, handle = self._result, self.connection
        if handle is None:
            return None
        if self._is_ready and result.ahead and handle.open:
            return result.ahead.popleft()
        if not result.unbuffered_active:
            if result.connection is not None:
                # PyMySQL treats an error of the server as the end of the rows.
                raise getattr(result, "ended_by", None) or ConnectionLost(
                    "the connection was lost, with rows unread"
                )
            return None
        con = handle._enter()
        try:
            if self._is_ready:
                return con.attempt(result._read_rowdata_packet_unbuffered)
            return con.attempt(super().read_next)
        except MySQLError as error:
            if con.lost is None:
                result.ended_by = without_traceback(error)
            raise
        finally:
            handle._leave()

    def close(self) -> None:
        # PyMySQL reads the remaining rows here. It is cheaper to close a connection
        # that is returned with rows unread; the next statement, if any, reads them.
        self.__del__()
        super().close()

    def __del__(self) -> None:
        self.connection = None
        if self._result is not None:
            self._result.unwanted = True


#: PyMySQL's method that puts the arguments into the statement.
_FILL_IN = "_mogrify" if hasattr(Cursor, "_mogrify") else "mogrify"


def _execute(cursor: Any, query: str | bytes, args: Any = None) -> int:
    """Execute a statement as PyMySQL does, without the calls that have no effect."""
    result = cursor._result
    if result is not None and result.has_next:
        while cursor.nextset():
            pass
    if type(query) is not str and is_template(query):
        query, args = plain(query, args)
    if args is not None:
        if cursor.connection is not None:
            cursor.connection._settle_mode()
        query = getattr(cursor, _FILL_IN)(query, args)
    found: int = cursor._query(query)
    cursor._executed = query
    return found


def _executemany(cursor: Any, query: Any, args: Any) -> Any:
    """Execute a statement with each of these arguments.

    In a block, statements that PyMySQL cannot merge into one are sent many at once, and
    all of them are undone if one fails.
    """
    handle = cursor.connection
    if handle is not None:
        handle._settle_mode()
    in_block = handle is not None and handle.blocks and not cursor._unbuffered
    if not args or not in_block or RE_INSERT_VALUES.match(query):
        return Cursor.executemany(cursor, query, args)
    fill_in, encoding = getattr(cursor, _FILL_IN), handle.encoding
    # Before the first is sent: a generator may use this connection, too.
    filled = [query if row is None else fill_in(query, row) for row in args]
    if filled:
        while cursor.nextset():
            pass
        cursor._clear_result()
        done = handle.execute_many(text.encode(encoding) for text in filled)
        if done is not None:
            cursor._executed = filled[-1]
            cursor._take_over(done.result)
            cursor.rowcount = done.rows
            return done.rows
    cursor.rowcount = sum(map(cursor.execute, filled))
    return cursor.rowcount


def _fetchall(cursor: Any) -> Any:
    """Return the rows that were not fetched yet, as PyMySQL does."""
    rows, handle = cursor._rows, cursor.connection
    if rows is None or (handle is not None and handle._returned):
        cursor._check_executed()
        return []
    if cursor.rownumber:
        rows = rows[cursor.rownumber :]
    cursor.rownumber = len(cursor._rows)
    return rows


def _fetch_rest(cursor: Any) -> Any:
    """Return the rows of a stream that were not fetched yet, as PyMySQL does."""
    rows = []
    while (row := cursor.fetchone()) is not None:
        rows.append(row)
        if cursor._is_ready and cursor._result.ahead:
            ahead, cursor._result.ahead = cursor._result.ahead, ()
            rows += ahead
            cursor.rownumber += len(ahead)
    return rows


def _init(cursor: Any, connection: Any) -> None:
    """Do what PyMySQL's ``__init__`` does; all else is an attribute of the class."""
    cursor.connection = connection


def _maker_of(cls: Any) -> tuple[int, Any]:
    """Return the kind of a class of cursors, and what makes the maker of its rows."""
    if getattr(cls, "read_next", None) in _READ_NEXT:
        for like, make_maker in _LIKE.items():
            names = ("_clear_result", "_do_get_result", "_conv_row", "dict_type")
            if all(getattr(cls, n, None) is getattr(like, n, None) for n in names):
                return MADE if make_maker else TUPLES, make_maker
    return OTHERS, None


#: Classes whose rows are made by a function, or are tuples.
_LIKE: dict[type[Cursor], Any] = {
    Cursor: None,
    SSCursor: None,
    DictCursor: make_dict_maker,
    RowCursor: make_row_maker,
}
#: Methods that the user has not overridden.
_READ_NEXT = None, SSCursor.read_next, _BoundSSCursor.read_next
_NEXTSETS = Cursor.nextset, SSCursor.nextset
_FETCH_REST = "fetchone", "fetchall", "fetchall_unbuffered"

#: The attributes that PyMySQL's ``__init__`` sets.
_OF_A_NEW_CURSOR = vars(Cursor(None))  # type: ignore[arg-type]


#: The methods that use a session; see ``PooledConnection._is_in_use``.
CALLS = frozenset(
    method.__code__
    for method in (PooledCursor._query, PooledCursor._nextset, _BoundSSCursor.read_next)
)


class _RecordingCursor(Cursor):
    """A cursor that records its statements and their durations."""

    connection: Any
    _result: Any
    _unbuffered: bool

    #: Whether a call is being recorded that executes statements by other methods.
    _recording = False

    def execute(self, query: Any, args: Any = None) -> int:
        if is_template(query):
            query, args = plain(query, args)
        found: int = self._record(query, args, super().execute, query, args)
        return found

    def executemany(self, query: str | bytes, args: Any) -> Any:
        # PyMySQL's calls execute() with the values already put into the statement.
        return self._record(query, args, super().executemany, query, args)

    def callproc(self, procname: str, args: Any = ()) -> Any:
        return self._record(f"CALL {procname}", args, super().callproc, procname, args)

    def _record(
        self, query: str | bytes, args: Any, call: Callable[..., Any], *its: Any
    ) -> Any:
        """Call a method and record its statement; not one that is part of another."""
        handle = self.connection
        recorder = None if handle is None else handle._pool.recorder
        if self._recording or recorder is None:
            return call(*its)
        self._recording, started = True, perf_counter()
        rows = no_index = None
        try:
            found = call(*its)
            if not self._unbuffered:
                rows = self.rowcount
                no_index = getattr(self._result, "used_no_index", None)
            return found
        finally:
            self._recording = False
            recorder.note(query, args, started, handle.endpoint, rows, no_index)


#: The derived classes, by the class that each is derived from.
BOUND: dict[type[Cursor], type[Cursor]] = {}
RECORDING: dict[type[Cursor], type[Cursor]] = {}


def _derived_once(derived: dict[Any, Any], derive: Callable[..., Any]) -> Any:
    """Keep what ``derive`` makes of a class; the class itself keeps it if it may go.

    A class that a view defines is a new one in each call.
    """
    name = f"_mysqlpool{derive.__name__}"

    @wraps(derive)
    def find(cls: Any) -> Any:
        found = vars(cls).get(name)
        if found is None:
            found = derive(cls)
            if "<locals>" not in cls.__qualname__:
                return derived.setdefault(cls, found)
            setattr(cls, name, found)
        return found

    return find


@partial(_derived_once, BOUND)
def bound_class(cls: type[Cursor]) -> type[Cursor]:
    """Derive a class whose cursors end with the checkout."""
    base = _BoundSSCursor if issubclass(cls, SSCursor) else PooledCursor
    # The caller may pass type(cursor) of a cursor that the pool has made.
    bound = cls if issubclass(cls, base) else _combined(base, cls)
    # Where the user has not overridden a method, a shorter one has the same effect.
    made: Any = bound
    if cls._query not in (Cursor._query, SSCursor._query):  # type: ignore[attr-defined]
        made._query = cls._query  # type: ignore[attr-defined]
    if cls.execute is Cursor.execute and cls.nextset in _NEXTSETS:
        made.execute = _execute
        if cls.executemany is Cursor.executemany:
            made.executemany = _executemany
    if cls.fetchall is Cursor.fetchall:
        made.fetchall = _fetchall
    if all(getattr(cls, n, None) is getattr(SSCursor, n) for n in _FETCH_REST):
        made.fetchall = _fetch_rest
    own = any(hasattr(cls, name) for name in _OF_A_NEW_CURSOR)  # maybe a property
    if cls.__init__ is Cursor.__init__ and not own:
        made.__init__ = _init
        for name, value in _OF_A_NEW_CURSOR.items():
            setattr(bound, name, value)
    made._kind, make_maker = _maker_of(cls)
    made._make_maker = staticmethod(make_maker)
    made._is_ready = made._kind == TUPLES
    return bound


@partial(_derived_once, RECORDING)
def recording_class(bound: type[Cursor]) -> type[Cursor]:
    """Derive a class whose cursors record statements."""
    own = issubclass(bound, _RecordingCursor)
    return bound if own else _combined(_RecordingCursor, bound)


def _combined(first: type[Cursor], cls: type[Cursor]) -> type[Cursor]:
    names = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (first, cls), names)
