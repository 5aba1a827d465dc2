"""Rolls back all changes of a test, also those that the app has committed.

Within :func:`rolled_back`, everything that an app does happens in one transaction, on
one connection. The app's commits set a savepoint, and its rollbacks return to it; at
the end the transaction is rolled back.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from weakref import WeakSet

from flask import Flask
from pymysql.constants import ER
from pymysql.cursors import Cursor
from pymysql.err import OperationalError

from ..extension.mysqlpool import KEY
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.session import OWN, Session
from ..pool.driver.statements import bare
from ..pool.transaction import transaction

#: Numbers for savepoints, unique over nested checkouts.
_NUMBERS = count(1)

#: Statements that equal a method of the connection, after :func:`bare`.
_TRANSACTIONAL = re.compile(
    rb"(?P<begin>begin(?: work)?|start transaction(?: (?:read|with) .*)?)"
    rb"|(?P<ends>commit|rollback)(?: work)?(?P<chain> and chain| and no chain)?"
    rb"(?: no release| release)?"
    rb"|set (?:session |local |@@(?:(?:session|local) ?\. ?)?)?autocommit ?:?= ?"
    rb"(?:(?P<on>1|on|true|default)|(?P<off>0|off|false))"
    rb"|(?P<next>set (?:transaction (?:isolation|read) "
    rb"|@@(?:transaction|tx)_(?:isolation|read_only) ?:?=).*)"
)

#: One of several variables that a statement sets.
_AUTOCOMMIT = re.compile(
    r"(,\s*)?(?:\b(?:session|local)\s+|@@(?:(?:session|local)\s*\.\s*)?|\b)autocommit"
    r"\s*:?=\s*(?:(?P<on>1|on|true|default)|0|off|false)\b(?(1)|\s*,)",
    re.IGNORECASE,
)


@contextmanager
def rolled_back(app: Flask) -> Iterator[None]:
    """Undo all changes of the app to its databases at the end of the block.

    All checkouts of a bind, in all threads, share one connection. Statements with an
    implicit commit, such as DDL, raise :exc:`~flask_mysqlpool.TransactionError`: create
    tables before. A bind that `READERS` names shares the connection of the pool that it
    reads for. ``READ ONLY`` and isolation levels of single transactions are accepted
    and ignored. If two checkouts overlap, the rollback of one includes the changes that
    the other has made meanwhile. Values of AUTO_INCREMENT are not reused.
    """
    with ExitStack() as stack:
        for state in app.extensions[KEY].values():
            for bind in state.config.pools:
                rehearsal = stack.enter_context(_rehearsal(state.pool(bind)))
                pools = state._pools
                stack.callback(pools.__setitem__, bind, pools[bind])
                pools[bind] = rehearsal
            for bind, config in state.config.pools.items():
                # Changes are not committed: another connection would not see them.
                if config.readers is not None and config.readers != bind:
                    state._pools[config.readers] = state._pools[bind]
        yield


@contextmanager
def _rehearsal(pool: Pool) -> Iterator[_Rehearsal]:
    rehearsal = _Rehearsal(pool)
    try:
        yield rehearsal
    finally:
        rehearsal.end()


class _Rehearsal:
    """A substitute for a pool, which lends one connection to all threads."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.name = pool.name
        #: Held by the thread that uses the connection.
        self.turn = threading.RLock()
        self._stack = ExitStack()
        self._handles: WeakSet[_Rehearsed] = WeakSet()
        self._con: Session | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "steady_connection":
            raise AttributeError("its changes could not be rolled back")
        return getattr(self.pool, name)

    def connection(
        self,
        shareable: bool = True,
        timeout: float | None = None,
        endpoint: str | None = None,
    ) -> PooledConnection:
        with self.turn:
            if self._con is None:
                self._con = self._take(timeout)
            handle = _Rehearsed(self, endpoint, f"{OWN}_checkout_{next(_NUMBERS)}")
            handle._con = self._con
            self._handles.add(handle)
            try:
                handle.keep()
            except BaseException:
                handle.close()
                raise
        return handle

    def dedicated_connection(self) -> PooledConnection:
        return self.connection()

    def close(self) -> None:
        """Do nothing: later changes of the app are rolled back, too."""

    def _take(self, timeout: float | None) -> Session | None:
        """Check out a connection, and begin the transaction."""
        self._stack.enter_context(_undone())
        taken = self._stack.enter_context(self.pool.connection(timeout=timeout))
        self._stack.enter_context(transaction(taken))
        return taken._con

    def end(self) -> None:
        for handle in list(self._handles):
            handle.close()
        if self._con is not None:
            self._stack.__exit__(_Undo, _Undo(), None)

    # Called by handles

    def checkout(self, handle: PooledConnection, timeout: float | None = None) -> None:
        # Called after a loss only, which stays one: all earlier changes are lost.
        handle._con = self._con

    def checkin(self, con: Session) -> None:
        """Do nothing: the connection is returned at the end of the block."""

    dropped = checkin


class _Undo(Exception):
    """Rolls back the transaction; is not raised to the caller."""


@contextmanager
def _undone() -> Iterator[None]:
    try:
        yield
    except _Undo:
        pass


class _Rehearsed(PooledConnection):
    """A checkout of the shared connection, which behaves like any other."""

    __slots__ = ("_autocommit", "_begun", "_inside_turn", "_savepoint", "_stage")

    def __init__(self, stage: _Rehearsal, endpoint: str | None, savepoint: str) -> None:
        super().__init__(stage, endpoint)
        self._stage = stage
        self._savepoint = savepoint
        self.savepoint = savepoint + "_{}"
        self._autocommit = stage.pool.config.autocommit
        self._inside_turn = False
        #: Whether there are changes since the savepoint.
        self._begun = False

    def _enter(self) -> Session:
        con = super()._enter()
        con.writes = self.writes
        self._stage.turn.acquire()
        self._inside_turn = True
        if not self._autocommit:
            self._begun = True
        return con

    def _leave(self) -> None:
        if self._inside_turn:
            con = self._con
            if con is not None and not self._begun:
                con.forget_changes()  # AUTOCOMMIT has committed them
            self._inside_turn = False
            self._stage.turn.release()
        super()._leave()

    def keep(self) -> None:
        """Set the savepoint: a commit."""
        self.query(f"SAVEPOINT {self._savepoint}")
        self._begun = False
        if self._con is not None:
            # For the holder, all changes are committed.
            self._con.forget_changes()

    def autocommit(self, value: bool) -> None:
        self._refuse_in_block("autocommit()", "call it before the block")
        if value and not self._autocommit:
            self.keep()
        self._autocommit = bool(value)

    def get_autocommit(self) -> bool:
        return self._autocommit

    def run_as_method(self, statement: str | bytes) -> bool:
        """Call the method that equals this statement; False if there is none."""
        plain = bare(statement)
        found = _TRANSACTIONAL.fullmatch(plain)
        if found is None:
            is_set = plain.startswith(b"set ") and b"autocommit" in plain
            return is_set and self._set_with_others(statement)
        if found["begin"]:
            self.begin()
        elif ends := found["ends"]:
            (self.commit if ends == b"commit" else self.rollback)()
            self._begun = found["chain"] == b" and chain" or self._begun
        elif found["next"]:
            pass  # the server would refuse it within the transaction
        else:
            self.autocommit(bool(found["on"]))
        return True

    def _set_with_others(self, statement: str | bytes) -> bool:
        text = statement if isinstance(statement, str) else bytes(statement).decode()
        found = [*_AUTOCOMMIT.finditer(text)]
        if len(found) != 1:
            return False
        super().query(text[: found[0].start()] + text[found[0].end() :])
        self.autocommit(bool(found[0]["on"]))
        return True

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        return 0 if self.run_as_method(sql) else super().query(sql, unbuffered)

    def cursor(self, cursor: Any = None) -> Any:
        made = super().cursor(cursor)
        cls = type(made)
        _REHEARSED.setdefault(cls, type(cls.__name__, (_RehearsedCursor, cls), {}))
        made.__class__ = _REHEARSED[cls]
        return made

    def begin(self) -> None:
        self._refuse_in_block("begin()", "nest transaction(), for a savepoint")
        self.keep()
        self._begun = True

    def commit(self) -> None:
        self._refuse_in_block("commit()", "the end of the block commits")
        self.keep()

    def rollback(self) -> None:
        self._refuse_in_block("rollback()", "let an exception leave the block")
        self._go_back()

    def _go_back(self) -> None:
        if self._begun:
            try:
                self.query(f"ROLLBACK TO SAVEPOINT {self._savepoint}")
            except OperationalError as error:
                if error.args[0] != ER.SP_DOES_NOT_EXIST:
                    raise
                # Another checkout's rollback has included this savepoint.
            self.keep()

    def begin_block(self) -> None:
        con = self._con
        if con is not None:
            con.refuse_open_transaction()
        self.keep()
        self._begun = True

    def end_block(self) -> None:
        self.keep()

    def undo_block(self) -> bool:
        self._go_back()
        return True

    def _undo_all(self, con: Session) -> None:
        con.undo_savepoint(self._savepoint)

    def close(self) -> None:
        if not self.returned and self.open:
            self.blocks = ()
            self.rollback()
        super().close()


class _RehearsedCursor(Cursor):
    """A cursor whose transactional statements call methods of its connection."""

    connection: Any

    def _query(self, q: str | bytes) -> int:
        if self.connection is not None and self.connection.run_as_method(q):
            return 0
        found: int = super()._query(q)  # type: ignore[misc]
        return found


#: By the class of the cursor that they replace.
_REHEARSED: dict[type[Any], type[Any]] = {}
