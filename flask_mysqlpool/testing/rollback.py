"""Rolls back all changes of a test, also those that the app has committed.

Within :func:`rolled_back`, everything that an app does happens in one transaction, on
one connection. The app's commits set a savepoint, and its rollbacks return to it; at
the end the transaction is rolled back.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any
from weakref import WeakSet

from flask import Flask
from pymysql.constants import ER
from pymysql.err import OperationalError

from ..extension.mysqlpool import KEY
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.session import Session
from ..pool.driver.statements import bare
from ..pool.transaction import OWN, Blocks, transaction

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
            configs = state.config.pools
            shared = {bind: _SharedPool(state.pool(bind)) for bind in configs}
            for pool in shared.values():
                stack.callback(pool.end)
            # Changes are not committed: another connection would not see them.
            readers = {
                config.readers: shared[bind]
                for bind, config in configs.items()
                if config.readers is not None and config.readers != bind
            }
            stack.enter_context(state.using(shared | readers))
        yield


class _SharedPool:
    """A substitute for a pool, which lends one connection to all threads."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.name = pool.name
        #: Held by the thread that uses the connection.
        self.turn = threading.RLock()
        self._stack = ExitStack()
        self._handles: WeakSet[_SharedConnection] = WeakSet()
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
        handle = _SharedConnection(self, endpoint)
        self._handles.add(handle)
        try:
            self.checkout(handle, timeout)
        except BaseException:
            handle.close()
            raise
        return handle

    def dedicated_connection(self) -> PooledConnection:
        return self.connection()

    def close(self) -> None:
        """Do nothing: later changes of the app are rolled back, too."""

    def _take(self, timeout: float | None) -> Session:
        """Check out a connection, and begin the transaction."""
        self._stack.enter_context(suppress(_Undo))
        taken = self._stack.enter_context(self.pool.connection(timeout=timeout))
        self._stack.enter_context(transaction(taken))
        assert taken._con is not None
        return taken._con

    def end(self) -> None:
        for handle in list(self._handles):
            handle.close()
        if self._con is not None:
            self._stack.__exit__(_Undo, _Undo(), None)

    # Called by handles

    def checkout(self, handle: PooledConnection, timeout: float | None = None) -> None:
        with self.turn:
            if self._con is None:
                self._con = self._take(timeout)
            con = _SharedSession.__new__(_SharedSession)
            con.share(self._con, f"{OWN}_checkout_{next(_NUMBERS)}")
            con.writes = handle.writes
            handle._con = con
            handle.savepoint = con.savepoint + "_{}"
            if con.lost is None:
                con.commit()

    def checkin(self, con: Session) -> None:
        """Undo uncommitted changes; the connection is returned at the end."""
        if con.lost is None:
            with self.turn:
                con.rollback()

    def dropped(self, con: Session) -> None:
        """Do nothing: a finalizer may not use the connection."""


class _Undo(Exception):
    """Rolls back the transaction; is not raised to the caller."""


class _SharedBlocks(Blocks):
    """The blocks of one checkout, within the transaction of all."""

    # All else is in the dictionary of the blocks that are shared.
    __slots__ = ("beginning", "number", "stack")

    def begin(self, session: Any) -> None:
        session.refuse_open_transaction()
        self.__dict__ = session.blocks.__dict__
        session.begin()
        self.number = session.transactions
        session.is_in_block = True

    def end(self, session: Any) -> None:
        session.is_in_block = False


class _SharedConnection(PooledConnection):
    """A checkout of the shared connection; only one thread at a time uses it."""

    __slots__ = ("_inside_turn",)

    _pool: _SharedPool
    make_blocks = _SharedBlocks

    def __init__(self, pool: _SharedPool, endpoint: str | None) -> None:
        super().__init__(pool, endpoint)
        self._inside_turn = False

    def _enter(self) -> Session:
        con = super()._enter()
        self._pool.turn.acquire()
        self._inside_turn = True
        con.begun = con.begun or not con.has_autocommit
        return con

    def _leave(self) -> None:
        if self._inside_turn:
            con = self._con
            if con is not None and not con.begun:
                con.forget_changes()  # AUTOCOMMIT has committed them
            self._inside_turn = False
            self._pool.turn.release()
        super()._leave()

    def _detach(self) -> bool:
        with self._pool.turn:  # it may ask the server
            return super()._detach()

    def get_autocommit(self) -> bool:
        return bool(self._attached().has_autocommit)


class _SharedSession(Session):
    """The session of one checkout, which shares the connection with all others.

    Where an ordinary session commits, it sets its savepoint anew.
    """

    # All else is in the dictionary of the session that is shared.
    __slots__ = ("begun", "has_autocommit", "is_in_block", "savepoint", "writes")

    def share(self, con: Session, savepoint: str) -> None:
        self.__dict__ = con.__dict__
        self.savepoint = savepoint
        self.has_autocommit = con.config.autocommit
        #: Whether the changes since the savepoint are to be undone by a rollback.
        self.begun = self.is_in_block = False

    def execute(self, statement: str | bytes, unbuffered: bool = False) -> Any:
        """Execute a statement; call the method instead if it equals one."""
        plain = bare(statement)
        found = _TRANSACTIONAL.fullmatch(plain)
        if found and found["next"]:
            pass  # the server would refuse it within the transaction
        elif self.is_in_block:
            return super().execute(statement, unbuffered)
        elif found is None:
            if plain.startswith(b"set ") and b"autocommit" in plain:
                return self._set_with_others(statement)
            return super().execute(statement, unbuffered)
        elif found["begin"]:
            self.begin()
        elif ends := found["ends"]:
            (self.commit if ends == b"commit" else self.rollback)()
            self.begun = found["chain"] == b" and chain" or self.begun
        else:
            self.command("autocommit", found["on"])
        return super().execute("DO 0", unbuffered)

    def _set_with_others(self, statement: str | bytes) -> Any:
        text = statement if isinstance(statement, str) else bytes(statement).decode()
        found = [*_AUTOCOMMIT.finditer(text)]
        if len(found) != 1:
            return super().execute(statement, unbuffered=False)
        others = text[: found[0].start()] + text[found[0].end() :]
        result = super().execute(others, unbuffered=False)
        self.command("autocommit", found[0]["on"])
        return result

    def command(self, name: str, *args: Any) -> Any:
        if name != "autocommit":
            return super().command(name, *args)
        if bool(args[0]) != self.has_autocommit:
            self.commit()  # also if off: what was done before is committed
        self.has_autocommit = bool(args[0])

    def begin(self) -> None:
        self.commit()
        self.begun = True

    def commit(self, statement: bytes = b"") -> None:
        self.execute(f"SAVEPOINT {self.savepoint}")
        self.begun = False
        # For the holder, all changes are committed.
        self.forget_changes()

    def rollback(self, statement: bytes = b"") -> None:
        if self.begun:
            try:
                self.execute(f"ROLLBACK TO SAVEPOINT {self.savepoint}")
            except OperationalError as error:
                if error.args[0] != ER.SP_DOES_NOT_EXIST:
                    raise
                # Another checkout's rollback has included this savepoint.
            self.commit()
