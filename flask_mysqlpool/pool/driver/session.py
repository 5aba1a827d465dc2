"""One session with the server: its set-up, what was done in it, and its cleaning.

What a statement leaves behind is noted when it is executed. So is what ends the
transaction of a block, or might have: that is what keeps a block all or nothing.
"""

from __future__ import annotations

import os
import re
import struct
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pymysql.constants import CLIENT, COMMAND, CR, ER, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError
from pymysql.protocol import EOFPacketWrapper, OKPacketWrapper

from ...config import PoolConfig
from ...errors import TransactionError
from .login import NO_PROFILES, NO_WARNINGS, Login
from .login import questions as login_questions
from .statements import (
    BEYOND_ROLLBACK,
    DIRTY_SCHEMA,
    ENDS,
    MAY_END,
    MEMORABLE,
    NONE,
    ROLE,
    RUNS_CODE,
    SESSION,
    SEVERAL,
    SIDE_EFFECTS_OF,
    SNAPSHOT,
    TRANSACTION,
    TRANSACTIONS,
    UNCLEANABLE,
    WRITES,
    find_side_effects,
    server_of,
    side_effects,
)
from .transport import LOST, Rows, Transport

#: Error numbers of a server that has become a replica; and of other things, such as a
#: write in one's own READ ONLY transaction: the server is asked before ours move on.
READ_ONLY = frozenset({1290, 1792, 1836, 1874})

#: And of one that takes no statements for now: a member of a Galera cluster that is on
#: its way in or out (1047), or a proxy without one that does (ProxySQL's 9001).
NOT_READY = frozenset({1047, 9001})

#: After these the server has most likely rolled back all of the transaction, not just a
#: statement: a deadlock, a snapshot that is out of date (MariaDB), no room for locks, a
#: member of a group that disagrees. The number alone proves nothing: a trigger can
#: signal it.
ROLLED_BACK = frozenset({ER.LOCK_DEADLOCK, ER.CHECKREAD, ER.LOCK_TABLE_FULL, 3101})

#: Not in PyMySQL: makes the session as good as new, at the price of a round trip.
COM_RESET_CONNECTION = 0x1F
#: Nor this: sets an option of the protocol, and is answered by the status.
COM_SET_OPTION = 0x1B

#: A timeout that no socket can have.
_UNTOUCHED = object()

#: Errors that are about the account, the server's state or another session, whatever
#: the statement: resources and limits (1021, 1037, 1041, 1203, 1226), a connection or a
#: server that ends, an interrupted statement (1317, 1969, 3024), locks of others (1205,
#: 1213, 3101, 3572), a password to be changed (1820, 1862), an account that is locked.
NOT_OF_A_STATEMENT = (
    NOT_READY
    | ROLLED_BACK
    | LOST
    | {1021, 1037, 1040, 1041, 1158, 1159, 1160, 1161, 1203, 1205, 1226, 1317, 1820}
    | {1862, 1969, 3024, 3032, 3118, 3159, 3168, 3169, 3572, 4151}
)

_IN_TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS
#: What tells a server's role, and whether a member of a Galera cluster is ready. Not
#: ``SELECT @@…``, which has some proxies keep the connection to one server.
_READ_ONLY_IF = "read_only", "super_read_only", "innodb_read_only"
_VARIABLES = b"SHOW GLOBAL VARIABLES WHERE Variable_name IN ('%s')" % b"', '".join(
    [*(name.encode() for name in _READ_ONLY_IF), b"wsrep_on", b"version"]
)
#: Makes FOUND_ROWS() what it is in a new session.
_NOTHING_FOUND = b"SELECT 1 FROM DUAL WHERE FALSE"
_STATUS = b"SHOW GLOBAL STATUS WHERE Variable_name = 'wsrep_ready'"
_ABOUT_ROLE = [(COMMAND.COM_QUERY, _VARIABLES), (COMMAND.COM_QUERY, _STATUS)]

#: Seconds that a rollback waits for a server to say whether it was demoted.
ROLE_PATIENCE = 1.0

#: What the names of our savepoints begin with, so that none is also a user's.
OWN = f"mysqlpool_{os.urandom(6).hex()}"
_PROBE = f"SAVEPOINT {OWN}_probe".encode()

#: What ``completion_type`` says of the next transaction is meant for the user's own.
_COMMIT = b"COMMIT AND NO CHAIN NO RELEASE"
_ROLLBACK = b"ROLLBACK AND NO CHAIN NO RELEASE"
#: In ``sql_mode`` ORACLE, BEGIN begins something else.
_BEGIN = b"START TRANSACTION"

_INCOMPLETE = "Previous unbuffered result was left incomplete"

#: The number of no transaction: that of a block which cannot go on.
_ENDED = -1
_AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT


class AnotherRole(OperationalError):
    """The server is a primary where a replica is wanted, or the other way round."""


def _query(statement: bytes) -> tuple[int, bytes]:
    return COMMAND.COM_QUERY, statement


# What has a server forget the texts of statements, which a reset of the session does
# not: MariaDB's profiles and MySQL's optimizer traces.


#: What of a statement the server repeats, which may be all of it.
_NEAR = re.compile(r"near '.*'", re.DOTALL)


def _say_whose(error: MySQLError, setting: str) -> None:
    """Name the setting whose statement the server refuses, if that is the reason."""
    if setting and len(error.args) == 2 and error.args[0] not in NOT_OF_A_STATEMENT:
        text = _NEAR.sub("near '…'", error.args[1])
        error.args = error.args[0], f"{setting}: {text}"


def _may_be_in_transaction(status: int) -> bool:
    """Judge by the server's last OK; with autocommit off, a SELECT gives none."""
    return bool(status & _IN_TRANSACTION or not status & _AUTOCOMMIT)


class Writes:
    """Whether a statement was sent that may have changed rows, for one purpose."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Session(Transport):
    """One session with the server, and what its pool has to remember about it."""

    def __init__(self, config: PoolConfig, arguments: dict[str, Any]) -> None:
        self.config = config
        # What its pool remembers of it. Times are in `time.monotonic()` seconds.
        self.opened = self.since = time.monotonic()
        self.expires = float("inf")
        self.generation = 0
        #: Until when it may be handed out without further questions.
        self.fresh_until = 0.0
        #: How often it was handed out, and the thread that has it now.
        self.uses = 0
        self.holder = 0
        #: For how long each time: a histogram, made by the pool.
        self.times: Any = None
        #: Of the handle that vanished without returning it: endpoint and stack.
        self.dropped_by: tuple[str | None, Any] | None = None
        #: Why it should go when it comes back, although it works, if it should.
        self.discard_reason = ""
        # What is known of the server.
        #: Whether it was read-only when this was opened, if that was asked.
        self.is_replica = False
        #: Whether an error may mean that the server is no longer the right one; whether
        #: it was asked; whether it has confirmed that.
        self.is_suspect = self._role_asked = self.is_demoted = False
        #: What to ask how far it is behind.
        self._replication = "SHOW REPLICA STATUS"
        #: When it was last asked how far it is behind.
        self.lag_checked = float("inf")
        #: Which kind it is of those that :mod:`.statements` knows.
        self._server = SEVERAL
        # What is known of the session.
        #: What its login made of it.
        self.login = Login()
        #: What its borrower may have left in it.
        self.side_effects = NONE
        #: Where to note that its borrower may have changed rows.
        self.writes = Writes()
        #: Rows that the open transaction has changed, and how many were ended so far.
        self.changed = self.transactions = 0
        #: Whether it may have changed more than the server says: with rows for answer,
        #: or in stored code.
        self.may_have_changed = False
        #: Which of them a block is; None outside of blocks.
        self.block: int | None = None
        #: Savepoints of inner blocks, to be set before the next statement that writes.
        self.savepoints_due: list[str] = []
        #: Whether a statement was sent that may have committed the block by itself, and
        #: the server has not answered since that it did not.
        self.is_marked = False
        #: Whether it is known that something in the block has ended its transaction.
        self.has_committed = False
        #: Whether an error, or stored code, has left open if there is a transaction;
        #: and whether the server has to be asked before anything else is sent.
        self.is_unknown = self.ask_first = False
        #: Whether a COMMIT was sent, and what came of it was not answered.
        self.commit_unknown = False
        super().__init__(arguments)

    def open(self, deadline: float, thorough: bool = True) -> None:
        """Connect and set the session up; see :meth:`Connector.connect`.

        ``thorough`` asks for everything that the login made of the session, not just
        for the usual.
        """
        try:
            self.establish(deadline)
            raw = self.raw
            self._charset = raw.charset, raw.encoding, raw.collation
            raw.autocommit_mode = self.config.autocommit
            self._set_up(deadline, thorough)
            if self.is_replica and self.config.max_lag is not None:
                self.check_lag(deadline)
        except BaseException:
            self.abandon()
            raise

    def _set_up(self, deadline: float, thorough: bool) -> None:
        """Ask what the login made of the session, and set it up."""
        raw, config = self.raw, self.config
        several = raw.client_flag & CLIENT.MULTI_STATEMENTS
        self._server = server_of(raw.server_version) | (SEVERAL if several else 0)
        self._is_mariadb = "MariaDB" in raw.server_version
        setup = self._statements_for_setup()
        statements = [text.encode(raw.encoding) for _, text in setup]
        questions = [*map(_query, login_questions(self._is_mariadb, thorough))]
        if config.reset_session == "transaction" or config.backend == "null":
            questions = []
        about_login = len(questions)
        # A Galera node outside of its cluster still accepts connections: ask it.
        if config.target != "any" or len(config.places) > 1:
            questions += _ABOUT_ROLE
        # The questions come first: what they leave, as ROW_COUNT(), is gone after the
        # set-up, which is what the cleaning of a session ends with, too.
        nothing = _query(_NOTHING_FOUND)
        self.write([*questions, nothing, *map(_query, statements)])
        answers = self.read_each(deadline)
        if about_login:
            # An error of the account comes again, with the set-up.
            self.login = Login(*answers[:about_login])
        #: What follows a reset.
        if not self._is_mariadb:
            statements[0] += self.login.no_traces()
        self._setup = [_query(statement) for statement in statements]
        about_role = answers[about_login : len(questions)]
        for answer in about_role:
            if isinstance(answer, MySQLError):
                raise answer
        # First whether it is the right server: on others a set-up may fail.
        self._check_target(about_role)
        settings = ["", *(setting for setting, _ in setup)]
        for answer, setting in zip(answers[len(questions) :], settings, strict=True):
            if isinstance(answer, MySQLError):
                _say_whose(answer, setting)
                raise answer

    def _check_target(self, answers: list[Rows]) -> None:
        """Whether the server has the role that is wanted, by what it says."""
        variables = {
            str(row["Variable_name"]): row["Value"] for rows in answers for row in rows
        }
        if variables.get("wsrep_on") == "ON" and variables.get("wsrep_ready") != "ON":
            raise OperationalError(1047, "this node of the cluster is not ready")
        if "MariaDB" in (variables.get("version") or ""):
            # Without ALL, that is the one connection that has no name.
            self._replication = "SHOW ALL SLAVES STATUS"
        self.is_replica = any(
            variables.get(name, "OFF") not in ("OFF", "0") for name in _READ_ONLY_IF
        )
        target = self.config.target
        if self.is_replica and target == "primary":
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, "it is read-only, not a primary")
        if not self.is_replica and target == "replica":
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, "it is writable, not a replica")

    def _statements_for_setup(self) -> list[tuple[str, str]]:
        """What gives a fresh session the settings of this pool, and which each is.

        ``INIT_COMMAND`` runs with autocommit on, as in PyMySQL. What it began, or
        ``SETSESSION``, is committed, so that no transaction is left open.
        """
        config, raw = self.config, self.raw
        autocommit = f"autocommit = {int(config.autocommit)}"
        first = "autocommit = 1" if config.init_command else autocommit
        own = [("SETSESSION", text) for text in config.setsession]
        if config.init_command:
            own[:0] = ("INIT_COMMAND", config.init_command), ("", f"SET {autocommit}")
        names = f"SET NAMES {raw.charset}"
        if raw.collation:
            names += f" COLLATE {raw.collation}"
        names += f", {first}"
        if config.sql_mode is not None:
            names += f", sql_mode = {raw.escape(config.sql_mode)}"
        statements = [("CHARSET, COLLATION or SQL_MODE", names)]
        if own:
            statements += [*own, ("", "COMMIT AND NO CHAIN NO RELEASE")]
        if config.read_only:
            statements.append(("READ_ONLY", "SET SESSION TRANSACTION READ ONLY"))
        return statements

    def execute(self, statement: str | bytes, unbuffered: bool) -> int:
        """Execute, and remember what this leaves behind in the session."""
        raw = self.raw
        if isinstance(statement, str):
            statement = statement.encode(raw.encoding)
        elif not isinstance(statement, bytes):
            statement = bytes(memoryview(statement))
        if raw._result is not None:
            self.read_leftovers()
        if self.ask_first:
            self.look()
        if len(statement) < MEMORABLE:
            left = side_effects(statement, self._server)
        else:
            left = find_side_effects(statement, self._server)
        if self.block is not None:
            self._prepare_in_block(left)
        self.side_effects |= left
        if left & WRITES:
            self.writes.sent = True
        try:
            affected: int = raw.query(statement, unbuffered)
        except BaseException as error:
            self.failed(error)
            raise
        result = raw._result
        if result.warning_count:
            self.side_effects |= SESSION
        if not result.field_count:
            self._note_change(affected, more=result.has_next)
            self.may_have_changed |= bool(left & MAY_END)
        elif left & WRITES:
            self.is_unknown |= bool(left & RUNS_CODE)  # rows tell nothing of it
            self.may_have_changed = True
            if not unbuffered and b"RETURNING" in statement.upper():
                self.changed += affected
        return affected

    def _note_change(self, rows: int, more: bool) -> None:
        """Note an OK, which tells whether the session is in a transaction now."""
        self.is_unknown = False
        if self.raw.server_status & _IN_TRANSACTION:
            self.changed += rows
            return
        if self.block is not None:
            self.has_committed = True
        self._transaction_ended()
        if more:
            self.side_effects |= TRANSACTIONS  # perhaps the next statement begins one

    def read_leftovers(self, wanted: bool = True) -> None:
        """Read what was not read of the last answer: it stands before the next one.

        Raises the error that it may end with, unless it is of a closed cursor, or is
        not ``wanted``.
        """
        raw = self.raw
        result = raw._result
        if result is not None and result.unbuffered_active:
            unwanted = getattr(result, "unwanted", False)
            if wanted and not unwanted:
                # As PyMySQL does, but before anything is sent that it could interrupt.
                warnings.warn(
                    "Previous unbuffered result was left incomplete", stacklevel=1
                )
            self._read_on(result._finish_unbuffered_query, wanted and not unwanted)
        while raw._result is not None and raw._result.has_next:
            self._read_on(raw.next_result, wanted)
        if raw._result is not None and raw._result.warning_count:
            # Of rows that were read one by one: it came after the last of them.
            self.side_effects |= SESSION

    def _read_on(self, read: Callable[[], Any], wanted: bool) -> None:
        try:
            self.attempt(read)
        except MySQLError:
            if wanted or self.lost is not None:
                raise

    # Transactions

    @property
    def has_uncommitted_writes(self) -> bool:
        """Whether a transaction may be open that may have changed rows."""
        changed = self.may_have_changed or self.changed > 0
        return changed and _may_be_in_transaction(self.raw.server_status)

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open that has done more than to read."""
        if self.is_unknown and self.side_effects & TRANSACTION:
            self.look()
        return bool(
            self.side_effects & TRANSACTION
            and _may_be_in_transaction(self.raw.server_status)
        )

    def look(self) -> None:
        """Ask the server whether a transaction is open."""
        self.attempt(self._ask_status)
        self.is_unknown = self.ask_first = False
        if not self.raw.server_status & _IN_TRANSACTION:
            self._transaction_ended()

    def _ask_status(self) -> None:
        """Have the server say its status, by an option that is set to what it is.

        A ping would change what ``ROW_COUNT()`` says after an error.
        """
        raw = self.raw
        multi = raw.client_flag & CLIENT.MULTI_STATEMENTS
        raw._execute_command(COM_SET_OPTION, struct.pack("<H", 0 if multi else 1))
        try:
            packet = raw._read_packet()
        except MySQLError:
            if raw._sock is None:
                raise
            raw.ping(False)  # a proxy may not know the command
        else:
            answer = EOFPacketWrapper if packet.is_eof_packet() else OKPacketWrapper
            raw.server_status = answer(packet).server_status

    def begin(self) -> None:
        """Begin a transaction, which commits the one that is open."""
        self.read_leftovers()
        self.side_effects |= TRANSACTION
        self.attempt(self._tell, _BEGIN)
        self._transaction_ended()
        self.side_effects |= TRANSACTION

    def commit(self, statement: bytes = b"COMMIT") -> None:
        """Commit; what is known to be lost before is a 2006, and nothing was sent."""
        self.read_leftovers()
        if not self.is_alive():
            self.attempt(_gone)
        self.commit_unknown = True
        try:
            self.attempt(self._tell, statement)
        except MySQLError as error:
            # A node of a Galera cluster that loses the others on the way says so, and
            # they may have got it all the same.
            lost_by_server = error.args[:1] == (ER.ERROR_DURING_COMMIT,)
            self.commit_unknown = self.lost is not None or lost_by_server
            raise
        self.commit_unknown = False
        self._has_ended_it()

    def rollback(self, statement: bytes = b"ROLLBACK") -> None:
        """Roll back, whatever is left to read."""
        self.read_leftovers(wanted=False)
        self.attempt(self._tell, statement)
        self._has_ended_it()

    def _tell(self, statement: bytes) -> None:
        """Execute a statement of ours, which the server answers by an OK."""
        self.raw._execute_command(COMMAND.COM_QUERY, statement)
        self.raw._read_ok_packet()

    def _has_ended_it(self) -> None:
        self._transaction_ended()
        if self.raw.server_status & _IN_TRANSACTION:
            self.side_effects |= SNAPSHOT  # completion_type has begun another one

    def _transaction_ended(self) -> None:
        self.forget_changes()
        self.transactions += 1
        self.is_unknown = self.ask_first = False

    def forget_changes(self) -> None:
        """Take nothing to be uncommitted any more."""
        self.side_effects &= ~TRANSACTIONS
        self.changed, self.may_have_changed = 0, False

    # Blocks

    def begin_block(self) -> None:
        """Begin a transaction, and refuse from now on what would end it early."""
        self.refuse_open_transaction()
        self.commit_unknown = False
        self.block = _ENDED  # until it has begun
        try:
            self.begin()
        except MySQLError:
            self.leave_block()
            raise
        self.block = self.transactions

    def refuse_open_transaction(self) -> None:
        """Refuse to begin a block where that would commit what was done before."""
        self.read_leftovers()
        if self.is_in_transaction():
            raise TransactionError(
                "a transaction is open already: a BEGIN, or without AUTOCOMMIT a"
                " statement that changed or locked something, has begun it; commit() or"
                " rollback() it first, or begin it with transaction(), which may be"
                " nested"
            )

    def _prepare_in_block(self, left: int) -> None:
        """Refuse what would end the block's transaction; mark what might.

        Nothing is sent before a mere read, which may ask about the statement before.
        """
        changes = left & (TRANSACTION | WRITES | MAY_END)
        if self.is_marked and changes:
            self._settle()
        if self.block != self.transactions:
            raise TransactionError(
                "the transaction of this block has been ended, by a deadlock or by a"
                " statement that commits implicitly; let the exception out of the block"
            )
        if left & ENDS:
            raise TransactionError(
                "a statement that ends the transaction, or commits it implicitly (DDL"
                " does), was refused inside transaction(): execute it outside; to"
                " roll back, let an exception out; to nest, use transaction() again"
            )
        while changes and self.savepoints_due:
            self.attempt(self._tell, b"SAVEPOINT " + self.savepoints_due[0].encode())
            del self.savepoints_due[0]
        if left & MAY_END:
            self.attempt(self._tell, _PROBE)
            self.is_marked = True

    def block_is_open(self) -> bool:
        """Whether the block's transaction still is; asks the server where it must."""
        self.read_leftovers()
        if self.ask_first:
            self.look()
        if self.is_marked:
            self._settle()
        return self.block == self.transactions

    def _settle(self) -> None:
        """Find out whether the transaction outlived a statement that may have ended it.

        A savepoint from before a procedure is gone, if that has committed.
        """
        try:
            self.attempt(self._tell, _PROBE.replace(b"SAVEPOINT", b"RELEASE SAVEPOINT"))
        except MySQLError as error:
            if self.lost is not None or error.args[0] != ER.SP_DOES_NOT_EXIST:
                raise
            self.has_committed = True
            self._transaction_ended()
        self.is_marked = False

    def begin_savepoint(self, name: str) -> None:
        """Begin an inner block; its savepoint is set before its first change."""
        self.savepoints_due.append(name)

    def end_savepoint(self, name: str) -> bool:
        """End an inner block: what it has done is the outer one's.

        False if the transaction is known to be over; doubts are the outer one's, too.
        """
        if name in self.savepoints_due:
            self.savepoints_due.remove(name)
        return self.block == self.transactions

    def undo_savepoint(self, name: str) -> None:
        """Undo an inner block, if it has done anything and the transaction is open."""
        if name in self.savepoints_due:
            self.savepoints_due.remove(name)
            return
        self.read_leftovers(wanted=False)
        if self.block_is_open():
            self.attempt(self._tell, f"ROLLBACK TO SAVEPOINT {name}".encode())

    def commit_block(self) -> None:
        """Commit, and let commit() and rollback() through again."""
        self.commit(_COMMIT)
        self.leave_block()

    def undo_block(self) -> bool:
        """Roll back; whether it is certain that nothing was committed before."""
        self.read_leftovers(wanted=False)
        if self.is_marked:
            self._settle()
        certain = not self.has_committed
        self.rollback(_ROLLBACK)
        self.leave_block()
        return certain

    def leave_block(self, fails: bool = False) -> None:
        """Be in no block any more; or in one that ``fails``, whatever it does."""
        self.is_marked = self.has_committed = False
        self.savepoints_due.clear()
        self.block = _ENDED if fails else None

    def command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server, likewise.

        What it refuses, or warns of, before anything is sent is no loss.
        """
        raw = self.raw
        if name != "next_result":
            self.read_leftovers()
        self.side_effects |= SIDE_EFFECTS_OF.get(name, NONE)
        # PyMySQL compares this before it writes or reads, and sets it then.
        raw._current_timeout = _UNTOUCHED
        try:
            result = getattr(raw, name)(*args)
        except BaseException as error:
            if raw._current_timeout is not _UNTOUCHED or raw._sock is None:
                self.failed(error)
            raise
        if name == "autocommit":
            self._note_change(0, more=False)
        elif name == "next_result" and not raw._result.field_count:
            self._note_change(result, more=raw._result.has_next)
        return result

    def reported(self, error: MySQLError, code: Any) -> None:
        self.is_unknown = True
        self.ask_first = self.block is not None or code in ROLLED_BACK
        if code in READ_ONLY or code in NOT_READY:
            self.is_suspect = True
        self.side_effects |= SESSION  # SHOW WARNINGS, which the next should not see

    def ask_role(self) -> bool:
        """Ask the server for its role, without waiting for the answer."""
        self._role_asked = self.write(_ABOUT_ROLE)
        return self._role_asked

    def read_each(self, deadline: float) -> list[Any]:
        """Read the answers; raise if one to :meth:`ask_role` confirms the suspicion."""
        answers = super().read_each(deadline)
        if self._role_asked:
            self.is_suspect = self._role_asked = False
            try:
                self._judge_role(answers[-len(_ABOUT_ROLE) :])
            except OperationalError:
                self.discard_reason = self.discard_reason or "invalidated"
                raise
            del answers[-len(_ABOUT_ROLE) :]
        return answers

    def _judge_role(self, answers: list[Any]) -> None:
        """Raise if the server says that it is not, or no longer, the right one."""
        was_replica = self.is_replica
        try:
            for answer in answers:
                if isinstance(answer, MySQLError):
                    raise answer
            self._check_target(answers)
        except OperationalError as error:
            another = isinstance(error, AnotherRole)
            self.is_demoted = another or error.args[0] in NOT_READY
            raise
        if self.config.target == "any" and self.is_replica and not was_replica:
            # Behind a name or an address that moves, another connect may find another.
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, "it has become read-only")

    def confirm_demotion(self) -> bool:
        """Whether the server is no longer the right one; asks if an error says so."""
        if self.is_suspect and self.lost is None:
            with suppress(MySQLError):  # judged already
                self.ask_role()
                self.read_answers(time.monotonic() + ROLE_PATIENCE)
        return self.is_demoted

    def check_lag(self, deadline: float) -> None:
        """Make sure that the replica is not further behind than ``MAX_LAG``.

        With several sources each counts. Raises :exc:`AnotherRole` if it is further
        behind one, or if one of them is not replicated from.
        """
        status = self.ask(self._replication, deadline)
        self.lag_checked = time.monotonic()
        lags = [
            row.get("Seconds_Behind_Source", row.get("Seconds_Behind_Master"))
            for row in status
        ]
        known = [float(lag) for lag in lags if lag is not None]
        if not lags or len(known) < len(lags):
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, "it is a replica that is stopped")
        limit = self.config.max_lag
        if limit is not None and max(known) > limit:
            text = f"it is {max(known):g} s behind its primary"
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, text)

    def reset_session(self) -> bool:
        """Make the session fit for the next borrower, without waiting.

        False if that is not certain to succeed; it must then be discarded.
        """
        raw = self.raw
        result = raw._result
        if result is not None:
            if result.unbuffered_active:
                return False
            if result.warning_count:
                self.side_effects |= SESSION
            if result.has_next:
                # The rest of a procedure's answer stands before those to the clean-up.
                self.unread = True
            else:
                raw._result = None
        left, self.side_effects = self.side_effects, NONE
        unknown, self.is_unknown = self.is_unknown, False
        self.changed, self.may_have_changed, self.ask_first = 0, False, False
        if self.block is not None:
            self.leave_block()
        raw._affected_rows = 0
        policy = self.config.reset_session
        if policy == "always":
            left |= SESSION
        elif policy == "transaction":
            left &= TRANSACTIONS
        if not left & BEYOND_ROLLBACK:
            status = raw.server_status
            if (
                unknown
                or self.unread
                or (left & TRANSACTIONS and _may_be_in_transaction(status))
            ):
                return self.write([_query(_ROLLBACK)])
            return True
        if left & UNCLEANABLE or self.login.obstacle:
            return False
        return self._start_over(left)

    def _start_over(self, left: int) -> bool:
        """Reset all that the server forgets when told to, and set up what it forgot.

        It does not forget where the session went: the database and the role.
        """
        raw, login = self.raw, self.login
        raw.charset, raw.encoding, raw.collation = self._charset
        raw.autocommit_mode = self.config.autocommit
        if left & DIRTY_SCHEMA and self.config.database is None:
            # There is no command to go back to having none.
            return False
        where = []
        if left & DIRTY_SCHEMA or login.is_of_database:
            database = (self.config.database or "").encode()
            where.append((COMMAND.COM_INIT_DB, database))
        if left & ROLE or left & RUNS_CODE and login.has_roles:
            where.append(_query(b"SET ROLE " + login.role(self._is_mariadb)))
        made = login.assignments()
        if made or not all(text.isascii() for _, text in where):
            again = [_query(b"SET NAMES utf8mb4" + made)]
            if login.may_warn and self._is_mariadb:
                again.append(_query(NO_WARNINGS))
            where[:0] = again
        first = []
        if left & MAY_END and self._is_mariadb:
            # Nothing less than a procedure or EXECUTE will have switched them on.
            where.append(_query(NO_PROFILES))
            # Fails after XA PREPARE, which a reset hides, but does not undo.
            first.append(_query(_ROLLBACK))
        return self.write([*first, (COM_RESET_CONNECTION, b""), *where, *self._setup])


def _gone() -> None:
    raise OperationalError(
        CR.CR_SERVER_GONE_ERROR,
        "MySQL server has gone away (before COMMIT was sent)",
    )
