"""One session with the server: its set-up, its side effects, and its clean-up.

The side effects of each statement are recorded when it is executed, as is whether it
ends, or may end, the transaction of a block. That keeps a block all or nothing.
"""

from __future__ import annotations

import re
import socket
import struct
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pymysql.constants import CLIENT, COMMAND, CR, ER, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError

from ...config import PoolConfig
from ...errors import TransactionError
from .error_codes import NOT_OF_A_STATEMENT, NOT_READY, READ_ONLY, ROLLED_BACK
from .login import NO_PROFILES, NO_WARNINGS, Login
from .login import questions as login_questions
from .process import process
from .results import read_status
from .sockets import socket_of_connect
from .statements import (
    BEYOND_ROLLBACK,
    CHANGES,
    DIRTY_SCHEMA,
    ENDS,
    MAY_END,
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
    server_of,
    side_effects,
)
from .transport import Rows, Transport, packets

#: Commands that PyMySQL lacks. This one resets the session.
COM_RESET_CONNECTION = 0x1F
#: This one sets an option of the protocol. The answer contains the server's status.
COM_SET_OPTION = 0x1B

#: A value that differs from every timeout.
_UNTOUCHED = object()

_IN_TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS
#: Statements that show a server's role, and whether a Galera node is ready. Not
#: ``SELECT @@…``, which makes some proxies pin the connection to one server.
_READ_ONLY_IF = "read_only", "super_read_only", "innodb_read_only"
_VARIABLES = b"SHOW GLOBAL VARIABLES WHERE Variable_name IN ('%s')" % b"', '".join(
    [*(name.encode() for name in _READ_ONLY_IF), b"wsrep_on", b"version"]
)
_OF_A_REPLICA = "SHOW REPLICA STATUS"
#: Resets FOUND_ROWS() to its value in a new session.
_NOTHING_FOUND = b"SELECT 1 FROM DUAL WHERE FALSE"
_STATUS = b"SHOW GLOBAL STATUS WHERE Variable_name = 'wsrep_ready'"
_ABOUT_ROLE = [(COMMAND.COM_QUERY, _VARIABLES), (COMMAND.COM_QUERY, _STATUS)]

#: Seconds until a server that has refused to reset a session is asked for it again. A
#: Galera node outside its cluster refuses it, too.
NO_RESET = 60.0

#: Seconds that a rollback waits for a server's answer about its role.
ROLE_PATIENCE = 1.0

#: Explicit, because ``completion_type`` is meant for the user's own transactions.
COMMIT = b"COMMIT AND NO CHAIN NO RELEASE"
ROLLBACK = b"ROLLBACK AND NO CHAIN NO RELEASE"
#: In ``sql_mode`` ORACLE, BEGIN begins a block of stored code.
BEGIN = b"START TRANSACTION"

_AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT


#: What the session is to report: that a variable was set, and the characteristics of
#: transactions, which show that one has ended and another begun. Numbers, because the
#: server takes a microsecond less for each than for ``ON`` and ``'CHARACTERISTICS'``.
ASSIGNMENTS = "session_track_state_change = 1, session_track_transaction_info = 2"


class AnotherRole(OperationalError):
    """The server's role, primary or replica, is not the one that TARGET requires."""


def _query(statement: bytes) -> tuple[int, bytes]:
    return COMMAND.COM_QUERY, statement


#: What a comment before a statement does not contain, and how long it is.
_NOT_IN_COMMENT, _LONGEST_COMMENT = re.compile(r"[^ -~]|[*%;?'\"`\\]"), 200

#: The part of a statement that a syntax error repeats, which may be all of it.
_QUOTED = re.compile(r"'.*'", re.DOTALL)


def _say_whose(error: MySQLError, setting: str) -> None:
    """Name the setting in an error that its statement has caused."""
    if setting and len(error.args) == 2 and error.args[0] not in NOT_OF_A_STATEMENT:
        number, text = error.args
        if number == ER.PARSE_ERROR:
            text = _QUOTED.sub("'…'", text)
        error.args = number, f"{setting}: {text}"


def _may_be_in_transaction(status: int) -> bool:
    """Return whether a transaction may be open, by the status of the last OK.

    Without autocommit, a SELECT may have begun one since: its answer contains no OK.
    """
    return bool(status & _IN_TRANSACTION or not status & _AUTOCOMMIT)


class Writes:
    """Whether a statement that may have changed rows was sent for one request."""

    sent = False


class Session(Transport):
    """One session with the server, and what its pool records about it."""

    # Recorded by the pool. Times are in `time.monotonic()` seconds.
    expires = float("inf")
    generation = 0
    #: Until when a checkout need not validate it, except by is_alive().
    fresh_until = 0.0
    #: The number of checkouts, and the thread of the current one.
    uses = 0
    holder = 0
    #: The durations of the uses: a histogram, made by the pool.
    times: Any = None
    #: Endpoint and stack of the handle that has vanished without a checkin.
    dropped_by: tuple[str | None, Any] | None = None
    #: The reason to close it at the checkin although it works, if there is one.
    discard_reason = ""

    # The state of the server.
    #: Whether the server was read-only when this was opened, if it was asked.
    is_replica = False
    #: Whether an error may mean that the server was demoted; whether it was asked for
    #: its role; whether it has confirmed the demotion.
    is_suspect = _role_asked = is_demoted = False
    #: The statement that shows a replica's lag.
    _replication = _OF_A_REPLICA
    #: When the lag was last measured.
    lag_checked = float("inf")
    #: The kind of server, as :mod:`.statements` distinguishes them.
    _server = SEVERAL
    #: Whether the client may send several statements at once.
    several = False

    # The state of the session.
    #: What the statements of the current checkout may have left behind.
    side_effects = NONE
    #: Rows changed by the open transaction; number of transactions ended so far.
    changed = transactions = 0
    #: Whether it may have changed rows that the server does not report: by a statement
    #: that returns rows, or in stored code.
    may_have_changed = False
    #: The open blocks, which are asked before each statement; None outside blocks.
    blocks: Any = None
    #: Whether it is unknown, after an error or stored code, if a transaction is open;
    #: and whether the server must be asked before the next statement.
    transaction_unknown = check_first = False
    #: Whether a COMMIT was sent, and not answered by an OK.
    commit_unanswered = False
    #: The last status whose NO_BACKSLASH_ESCAPES was known to be right. If that of
    #: another differs, :meth:`settle_mode` is due before a value is escaped.
    known_mode = 0
    #: The comment before each statement, if STATEMENT_COMMENTS is set.
    comment = b""
    #: What the server told with its answer to the last COMMIT.
    told_of_commit = NONE
    #: Where to record that it was closed before the server had answered.
    abandoned: Any = None

    #: The position of a reset among the commands that were sent, until its answer.
    _reset_at: int | None = None

    def __init__(self, config: PoolConfig, arguments: dict[str, Any]) -> None:
        self.config = config
        #: For each server that has refused a reset: until when not to ask it.
        self.no_reset: dict[tuple[str, int], float] = {}
        self.opened = self.since = time.monotonic()
        self.keepalive = config.keepalive
        #: What the login has set.
        self.login = Login()
        #: Where to record that rows may have been changed.
        self.writes = Writes()
        policy = config.reset_session
        #: The side effects that RESET_SESSION has a clean-up for, and those for which
        #: it always has.
        self._cleaned = TRANSACTIONS if policy == "transaction" else ~NONE
        self._always_cleaned = SESSION if policy == "always" else NONE
        super().__init__(arguments)

    def open(self, deadline: float, thorough: bool = True, hasty: bool = False) -> None:
        """Connect and set the session up; see :meth:`Connector.connect`.

        ``thorough`` asks for everything that a login may set, not only for the usual.
        ``hasty`` gives the set-up half of the time that is left, but not less than four
        times that of the login.
        """
        try:
            begun = time.monotonic()
            self.establish(deadline)
            if hasty:
                now = time.monotonic()
                half = (deadline - now) / 2
                deadline = min(now + max(half, 4 * (now - begun)), deadline)
            if self.abandoned is not None:
                # Before the set-up, which removes the side effects.
                self.abandoned.kill(self, deadline)
            raw = self.raw
            self._charset = raw.charset, raw.encoding, raw.collation
            raw.autocommit_mode = self.config.autocommit
            self._set_up(deadline, thorough)
            if self.is_replica and self.config.max_lag is not None:
                self.check_lag(deadline)
        except BaseException as error:
            if self.unanswered:
                self.failed(error)
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close this end; record a statement that the server may go on executing."""
        if self.abandoned is not None and not self._closed and self._may_go_on():
            self.abandoned.add(self)
        super().abandon()

    def _may_go_on(self) -> bool:
        """Return whether this end closes the session before the server has answered.

        A COMMIT is left to the server: it may succeed yet.
        """
        if self.commit_unanswered or not self.port or self.pid != process():
            return False
        if self.lost is not None:
            return self.interrupted or not self.is_disconnected
        result = self.raw._result
        return result is not None and (result.unbuffered_active or result.has_next)

    def open_socket(self, deadline: float) -> socket.socket:
        """Open the socket, or have ``CONNECT`` open it."""
        if self.config.connect is None:
            return super().open_socket(deadline)
        return socket_of_connect(self.raw, deadline, self.config)

    def _set_up(self, deadline: float, thorough: bool) -> None:
        """Ask what the login has set, and set up the session."""
        raw, config = self.raw, self.config
        self.several = bool(raw.client_flag & CLIENT.MULTI_STATEMENTS)
        self._server = server_of(raw.server_version) | SEVERAL * self.several
        self._is_mariadb = "MariaDB" in raw.server_version
        setup = self._statements_for_setup()
        statements = [text.encode(raw.encoding) for _, text in setup]
        tracking = []
        if raw.is_tracking:
            # A proxy may offer the flags, and not know these variables.
            tracking.append(_query(b"SET " + ASSIGNMENTS.encode()))
        questions = [*map(_query, login_questions(self._is_mariadb, thorough))]
        if config.reset_session == "transaction" or config.backend == "null":
            questions = []
        about_login = len(questions)
        # A Galera node outside its cluster still accepts connections: ask it.
        if config.target != "any" or len(config.places) > 1:
            questions += _ABOUT_ROLE
        # The questions come first: the set-up removes their side effects, such as
        # ROW_COUNT(). A clean-up ends with the same set-up.
        nothing = _query(_NOTHING_FOUND)
        self.write([*questions, *tracking, nothing, *map(_query, statements)])
        answers = self.read_each(deadline)
        if tracking and not isinstance(answers.pop(len(questions)), MySQLError):
            statements[0] += b", " + ASSIGNMENTS.encode()
        if about_login:
            # An error about the account is repeated by the set-up, and raised there.
            self.login = Login(*answers[:about_login], thorough=thorough)
        if not self._is_mariadb:
            statements[0] += self.login.no_traces()
        #: The commands that set up the session again after a reset.
        self._setup = [_query(statement) for statement in statements]
        about_role = answers[about_login : len(questions)]
        for answer in about_role:
            if isinstance(answer, MySQLError):
                raise answer
        # The role first: on a server of another role the set-up may fail.
        self._check_target(about_role)
        settings = ["", *(setting for setting, _ in setup)]
        for answer, setting in zip(answers[len(questions) :], settings, strict=True):
            if isinstance(answer, MySQLError):
                _say_whose(answer, setting)
                raise answer
        self.known_mode = raw.server_status

    def _check_target(self, answers: list[Rows]) -> None:
        """Raise if the answers show that the server is not ready or of another role."""
        variables = {
            str(row["Variable_name"]): row["Value"] for rows in answers for row in rows
        }
        if variables.get("wsrep_on") == "ON" and variables.get("wsrep_ready") != "ON":
            raise OperationalError(1047, "this node of the cluster is not ready")
        if "MariaDB" in (variables.get("version") or ""):
            # Without ALL, it shows only the replication connection without a name.
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
        """Return the statements of the set-up, each with the setting that it is for.

        ``INIT_COMMAND`` runs with autocommit on, as in PyMySQL. A final COMMIT ends a
        transaction begun by ``INIT_COMMAND`` or ``SETSESSION``.
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

    def execute(self, statement: str | bytes, unbuffered: bool) -> Any:
        """Execute a statement and record its side effects; return PyMySQL's result."""
        raw = self.raw
        if isinstance(statement, str):
            statement = statement.encode(raw.encoding)
        elif not isinstance(statement, bytes):
            statement = bytes(memoryview(statement))
        if raw._result is not None:
            self.read_leftovers()
        if self.check_first:
            self.check_status()
        left = side_effects(statement, self._server)
        if self.blocks is not None:
            self.blocks.check(self, left)
        self.side_effects |= left
        if left & WRITES:
            self.writes.sent = True
        sent = self.comment + statement if self.comment else statement
        try:
            if self.blocks is None:
                raw.query(sent, unbuffered)
            else:
                self.blocks.execute(self, sent, left, unbuffered)
        except BaseException as error:
            self.failed(error)
            raise
        result = raw._result
        if raw.told:
            self.hear(left)
        if result.warning_count:
            self.side_effects |= SESSION
        if not result.field_count:
            self._note_change(result.affected_rows, more=result.has_next)
            self.may_have_changed |= bool(left & MAY_END)
        elif left & WRITES:
            # An answer with rows tells what stored code did only at its end, if at all.
            ended = raw.is_tracking and not (unbuffered or result.has_next)
            self.transaction_unknown |= bool(left & RUNS_CODE) and not ended
            self.may_have_changed = True
            if not unbuffered and b"RETURNING" in statement.upper():
                self.changed += result.affected_rows
        if not (unbuffered or result.has_next):
            raw._result = None  # nothing is left to read
        return result

    def name_in_comments(self, purpose: str | None) -> None:
        """Begin each statement with a comment: the pool's name and a purpose."""
        text = f"{self.config.name} {purpose or ''}".strip()
        # Printable ASCII without what could end the comment.
        plain = _NOT_IN_COMMENT.sub("_", text)[:_LONGEST_COMMENT]
        self.comment = f"/* {plain} */ ".encode()

    def hear(self, left: int = NONE) -> None:
        """Record what the server has told since a statement with these side effects."""
        raw = self.raw
        told, raw.told = raw.told, NONE
        if self.blocks is not None and told & ENDS:
            self.blocks.is_told = False
        if left & TRANSACTION:
            told &= ~WRITES  # it tells so of locks, too
        if told & WRITES:
            told |= CHANGES  # by stored code, which the text does not show
        self.side_effects |= told & ~ENDS
        if told & WRITES:
            self.may_have_changed = self.writes.sent = True

    def _note_change(self, rows: int, more: bool) -> None:
        """Record an OK, whose status says whether a transaction is open."""
        self.transaction_unknown = False
        if self.raw.server_status & _IN_TRANSACTION:
            self.changed += rows
            return
        if self.blocks is not None:
            self.blocks.has_committed = True
        self.transaction_ended()
        if more:
            self.side_effects |= TRANSACTIONS  # a later result may begin one

    def read_leftovers(self, wanted: bool = True) -> None:
        """Read the rest of the last answer, which comes before the next one.

        If it ends with an error, raise that, unless the cursor has been closed or the
        rest is not ``wanted``.
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
            if result.has_next is None:
                # It has ended by an error, which PyMySQL ignores if time was up.
                self.reported(OperationalError(), None)
        while raw._result is not None and raw._result.has_next:
            self._note_warnings()
            self._read_on(raw.next_result, wanted)
        self._note_warnings()
        if raw.told:
            self.hear()

    def _note_warnings(self) -> None:
        """Record the warnings of a result, after its last row."""
        result = self.raw._result
        if result is not None and result.warning_count:
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
        """Whether an open transaction may have changed rows."""
        changed = self.may_have_changed or self.changed > 0
        return changed and _may_be_in_transaction(self.raw.server_status)

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open that has done more than read."""
        if self.transaction_unknown and self.side_effects & TRANSACTION:
            self.check_status()
        return bool(
            self.side_effects & TRANSACTION
            and _may_be_in_transaction(self.raw.server_status)
        )

    def check_status(self) -> None:
        """Ask the server whether a transaction is open."""
        self.attempt(self._ask_status)
        self.transaction_unknown = self.check_first = False
        if self.raw.told:
            self.hear(CHANGES)
        if not self.raw.server_status & _IN_TRANSACTION:
            self.transaction_ended()

    def settle_mode(self) -> None:
        """Have the status tell anew how the server reads a backslash.

        Where stored code that has changed it ends, a server restores ``sql_mode``, but
        not the status.
        """
        self.read_leftovers()
        # What an error before it did not tell, as of a COMMIT, comes with this answer.
        self.raw.told |= self.attempt(self._tell, b"SET sql_mode = @@sql_mode")
        self.known_mode = self.raw.server_status

    def _ask_status(self) -> None:
        """Get the server's status, by setting an option to its current value.

        A ping would change ``ROW_COUNT()`` after an error.
        """
        raw = self.raw
        multi = raw.client_flag & CLIENT.MULTI_STATEMENTS
        raw._execute_command(COM_SET_OPTION, struct.pack("<H", 0 if multi else 1))
        try:
            read_status(raw)
        except MySQLError:
            if raw._sock is None:
                raise
            raw.ping(False)  # a proxy may not know the command

    def begin(self) -> None:
        """Begin a transaction, which commits an open one."""
        self.read_leftovers()
        self.side_effects |= TRANSACTION
        self.attempt(self._tell, BEGIN)
        self.transaction_ended()
        self.side_effects |= TRANSACTION

    def commit(self, statement: bytes = b"COMMIT") -> None:
        """Commit; raise a 2006, without sending anything, if the server has gone."""
        self.read_leftovers()
        if not self.is_alive():
            self.attempt(_gone)
        self.commit_unanswered = True
        self.told_of_commit = self.attempt(self._tell, statement)
        self.commit_unanswered = False
        self._end_transaction()

    def rollback(self, statement: bytes = b"ROLLBACK") -> None:
        """Roll back, after discarding results that were not read."""
        self.read_leftovers(wanted=False)
        self.attempt(self._tell, statement)
        self._end_transaction()

    def _tell(self, statement: bytes) -> int:
        """Execute a statement that is answered by an OK; return what that tells of."""
        self.send([statement])
        raw = self.raw
        raw._next_seq_id = 1
        raw._read_query_result()
        result, raw._result = raw._result, None
        if result.field_count or result.has_next:
            raise OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Command Out of Sync")
        told, raw.told = raw.told, NONE
        return int(told)

    def send(self, statements: list[bytes]) -> None:
        """Send statements in one piece."""
        if self.raw._sock is None:
            raise OperationalError(
                CR.CR_SERVER_GONE_ERROR, "MySQL server has gone away"
            )
        self.raw._write_bytes(packets(map(_query, statements)))

    def _end_transaction(self) -> None:
        """Record the end of a transaction by COMMIT or ROLLBACK."""
        self.transaction_ended()
        if self.raw.server_status & _IN_TRANSACTION:
            self.side_effects |= SNAPSHOT  # completion_type has begun another

    def transaction_ended(self) -> None:
        """Record that no transaction is open."""
        self.forget_changes()
        self.transactions += 1
        self.transaction_unknown = self.check_first = self.commit_unanswered = False

    def forget_changes(self) -> None:
        """Forget the uncommitted changes."""
        self.side_effects &= ~TRANSACTIONS
        self.changed, self.may_have_changed = 0, False

    def refuse_open_transaction(self) -> None:
        """Refuse to begin a block if that would commit earlier changes."""
        self.read_leftovers()
        if self.is_in_transaction():
            raise TransactionError(
                "a transaction is open already, begun by BEGIN or, without AUTOCOMMIT,"
                " by a statement that changed or locked rows; commit() or rollback() it"
                " first, or begin it with transaction(), which can be nested"
            )

    def command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server; record its side effects.

        An error raised before anything was sent does not lose the connection.
        """
        raw = self.raw
        if name == "next_result":
            self._note_warnings()
        else:
            self.read_leftovers()
        self.side_effects |= SIDE_EFFECTS_OF.get(name, NONE)
        # PyMySQL sets this before it writes or reads, so a change shows that it did.
        raw._current_timeout = _UNTOUCHED
        try:
            result = getattr(raw, name)(*args)
        except BaseException as error:
            if raw._current_timeout is not _UNTOUCHED or raw._sock is None:
                self.failed(error)
            raise
        if name == "autocommit" and raw._current_timeout is not _UNTOUCHED:
            self._note_change(0, more=False)
        elif name == "next_result":
            if raw.told:
                self.hear()
            if not raw._result.field_count:
                self._note_change(result, more=raw._result.has_next)
        return result

    def reported(self, error: MySQLError, code: Any) -> None:
        """Record what an error of the server may mean for transaction and role."""
        self.transaction_unknown = True
        self.check_first = self.blocks is not None or code in ROLLED_BACK
        if code in READ_ONLY or code in NOT_READY:
            self.is_suspect = True
        self.side_effects |= SESSION  # SHOW WARNINGS would show the error to the next

    def ask_role(self) -> bool:
        """Ask the server for its role, without waiting for the answer."""
        self._role_asked = self.write(_ABOUT_ROLE)
        return self._role_asked

    def read_each(self, deadline: float) -> list[Any]:
        """Read the answers; raise if those to :meth:`ask_role` show a demotion."""
        answers = super().read_each(deadline)
        self.raw.told = NONE  # of the clean-up
        position, self._reset_at = self._reset_at, None
        if position is not None and isinstance(answers[position], MySQLError):
            until = time.monotonic() + NO_RESET
            self.no_reset[self.raw.host, self.raw.port] = until
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
        """Raise if these answers show that the server was demoted or is not ready."""
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
            # With a host name or address that moves, a connect may find the primary.
            raise AnotherRole(CR.CR_CONN_HOST_ERROR, "it has become read-only")

    def confirm_demotion(self) -> bool:
        """Return whether the server was demoted; ask it if an error may mean so."""
        if self.is_suspect and self.lost is None:
            with suppress(MySQLError):  # is_demoted tells
                self.ask_role()
                self.read_answers(time.monotonic() + ROLE_PATIENCE)
        return self.is_demoted

    def check_lag(self, deadline: float) -> None:
        """Raise :exc:`AnotherRole` if the replica's lag is above ``MAX_LAG``.

        With several sources the largest lag counts. A source whose replication is
        stopped is an error, too.
        """
        status = self._ask_replication(deadline)
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

    def _ask_replication(self, deadline: float) -> Rows:
        """Return the rows that show a replica's state, by a statement that it knows."""
        try:
            return self.ask(self._replication, deadline)
        except MySQLError as error:
            is_unknown = error.args[0] in (ER.PARSE_ERROR, ER.NOT_SUPPORTED_YET)
            if self.lost is None and is_unknown and self._replication == _OF_A_REPLICA:
                # MySQL before 8.0.22
                self._replication = "SHOW SLAVE STATUS"
                return self._ask_replication(deadline)
            _say_whose(error, "MAX_LAG")
            raise

    def reset_session(self) -> bool:
        """Send the commands that clean the session, without waiting for the answers.

        False if they are not certain to succeed; the session must then be discarded.
        """
        raw = self.raw
        if raw.told:
            self.hear()
        left = self.side_effects | self._always_cleaned
        raw._affected_rows = 0
        self.side_effects = NONE
        # Without autocommit, a SELECT may have begun a transaction since the last OK:
        # its answer contains no status.
        in_none = raw.server_status & (_IN_TRANSACTION | _AUTOCOMMIT) == _AUTOCOMMIT
        if (
            left <= SNAPSHOT
            and in_none
            and raw._result is None
            and self.blocks is None
            and not self.transaction_unknown
        ):
            return True
        return self._clean_up(left, in_none)

    def _clean_up(self, left: int, in_none: bool) -> bool:
        """Send the commands that remove these side effects."""
        raw = self.raw
        unknown, self.transaction_unknown = self.transaction_unknown, False
        if raw._result is not None:
            if raw._result.unbuffered_active:
                return False
            if raw._result.warning_count:
                left |= SESSION
            if raw._result.has_next:
                # The rest of the answer, which may have warnings, comes before those to
                # the clean-up.
                self.unread = unknown = True
                left |= SESSION
            else:
                raw._result = None
        self.changed, self.may_have_changed = 0, False
        self.check_first = self.commit_unanswered = False
        if self.blocks is not None:
            if self.blocks.autocommit_is_off:
                if self.config.reset_session == "transaction":
                    return False
                left |= SESSION
            self.blocks = None
        left &= self._cleaned
        if not left & BEYOND_ROLLBACK:
            if unknown or (left & TRANSACTIONS and not in_none):
                return self.write([_query(ROLLBACK)])
            return True
        if left & UNCLEANABLE or self.login.obstacle:
            return False
        return self._reset_all(left)

    def _reset_all(self, left: int) -> bool:
        """Reset the session, and repeat the set-up.

        A reset does not restore the database and the role, so these are set explicitly.
        """
        raw, login = self.raw, self.login
        if time.monotonic() < self.no_reset.get((raw.host, raw.port), 0.0):
            return False
        raw.charset, raw.encoding, raw.collation = self._charset
        raw.autocommit_mode = self.config.autocommit
        if left & DIRTY_SCHEMA and self.config.database is None:
            # No command deselects the database.
            return False
        has_other_role = left & ROLE or left & RUNS_CODE and login.has_roles
        if has_other_role and not login.knows_role:
            return False
        where = []
        if left & DIRTY_SCHEMA or login.is_of_database:
            database = (self.config.database or "").encode()
            where.append((COMMAND.COM_INIT_DB, database))
        if has_other_role:
            where.append(_query(b"SET ROLE " + login.role(self._is_mariadb)))
        made = login.assignments()
        if made or not all(text.isascii() for _, text in where):
            again = [_query(b"SET NAMES utf8mb4" + made)]
            if login.may_warn and self._is_mariadb:
                again.append(_query(NO_WARNINGS))
            where[:0] = again
        first = []
        if left & MAY_END and self._is_mariadb:
            # Only stored code or EXECUTE can have switched on profiling unseen.
            where.append(_query(NO_PROFILES))
            # Fails after XA PREPARE, which a reset hides without undoing it.
            first.append(_query(ROLLBACK))
        self._reset_at = len(first)
        return self.write([*first, (COM_RESET_CONNECTION, b""), *where, *self._setup])


def _gone() -> None:
    raise OperationalError(
        CR.CR_SERVER_GONE_ERROR,
        "MySQL server has gone away (before COMMIT was sent)",
    )
