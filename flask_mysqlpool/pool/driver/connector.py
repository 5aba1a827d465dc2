"""Open connections according to the settings."""

from __future__ import annotations

import inspect
import os
import random
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from logging import WARNING
from typing import Any, NamedTuple, TypeGuard, cast

from pymysql.constants import COMMAND, CR, ER
from pymysql.err import InternalError, MySQLError, OperationalError

from ...config import PoolConfig
from ...config.addresses import Place
from .error_codes import HOST_ERRORS, LOST, NOT_READY, SAME_ON_ALL_HOSTS, pause_after
from .logs import Throttle, is_exit, kind, log, plain
from .session import AnotherRole, Session
from .sockets import longest
from .tls import Certificates, is_verified
from .transport import NotAnswered, without_traceback

#: Back-off after a failure of a host: seconds, from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Seconds until a host is tried again whose role is not the one that TARGET requires.
ANOTHER_ROLE = 0.25
#: Statements that were given up: how many a pool remembers, for how many seconds.
MOST_ABANDONED, FORGOTTEN = 100, 60.0
#: Seconds until it is tried again to kill at a server that does not list our ports.
PORTS_HIDDEN = 60.0

monotonic = time.monotonic

#: Whether several commands may be sent at once, by the address of the server, or of the
#: proxy before it; not known before the first connect. None: one connect failed as if
#: they may not, which may be chance.
_PIPELINES: dict[Place | str, bool | None] = {}


class Secret:
    """The password of one connect, in an object whose ``repr()`` does not show it."""

    __slots__ = ("value",)

    def __init__(self, password: object) -> None:
        if password is None or isinstance(password, bytes):
            self.value = password or b""
            return
        try:
            # PyMySQL would encode text as Latin-1; the server expects UTF-8. Bytes of
            # the environment that are not UTF-8 are restored.
            self.value = str.encode(password, errors="surrogateescape")  # type: ignore[arg-type]
            return
        except (TypeError, UnicodeEncodeError):
            # The traceback must not contain the password, neither in the error nor in
            # a variable.
            password = type(password).__name__
        raise OperationalError(
            CR.CR_UNKNOWN_ERROR,
            f"PASSWORD is {password}, and not text that UTF-8 can represent",
        )


def in_clear(raw: Any) -> None:
    """Refuse to send the password in clear text to a server that is not verified.

    PyMySQL calls it if the server asks for such a plug-in; None is its own plug-in.
    """
    if not is_verified(raw._sock):
        raise _unverified("in clear text,")


class HashedOnly(bytes):
    """A password that PyMySQL may hash, but not send to a server without TLS.

    PyMySQL appends a zero byte before it sends a password, in clear text or encrypted
    with the server's key. That calls :meth:`__add__`.
    """

    _raw: Callable[[], Any]

    @classmethod
    def of(cls, raw: Any) -> HashedOnly:
        made = cls(raw.password)
        made._raw = weakref.ref(raw)
        return made

    def __add__(self, more: Any) -> bytes:
        if self._raw()._secure:
            return super().__add__(more)
        raise _unverified("without TLS, with a key of its own,")


def _unverified(how: str) -> OperationalError:
    return OperationalError(
        CR.CR_AUTH_PLUGIN_CANNOT_LOAD,
        f"The server asks for the password {how} and it is not verified:"
        " set SSL_MODE = 'VERIFY_IDENTITY' and SSL_CA, or, if any server may have"
        " the password, CLEARTEXT_PLUGIN = True",
    )


def _ask(source: Callable[[], object]) -> object:
    """Call the ``PASSWORD`` function."""
    try:
        password = source()
    except BaseException as error:
        if is_exit(error):
            raise
        # The text of the error may contain the password.
        text = f"PASSWORD cannot be asked for: it raised {kind(error)}"
        failure = OperationalError(CR.CR_UNKNOWN_ERROR, text)
        failure.__cause__ = without_traceback(error)
    else:
        if inspect.iscoroutine(password):
            password.close()  # or Python warns that it was never awaited
        if password is not None:
            return password
        text = "PASSWORD returned None, and no password is an empty text"
        failure = OperationalError(CR.CR_UNKNOWN_ERROR, text)
    raise failure


#: Plug-ins that send the password in clear text.
IN_CLEAR = dict.fromkeys(("mysql_clear_password", "dialog"), in_clear)


class Hosts:
    """The order in which several hosts are tried. Thread-safe: each step is atomic.

    A host that failed is avoided for a while. Then one connect tries it again, while
    others still go to hosts that work. If all hosts have failed, all are tried.
    """

    def __init__(self, places: Sequence[Place], *, in_random_order: bool) -> None:
        self._places = tuple(places)
        self._in_random_order = in_random_order
        #: For each host that failed: until when to avoid it, and the failures in a row.
        self._bad: dict[Place, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        """Yield all hosts in the order in which to try them."""
        places = list(self._places)
        if self._in_random_order:
            random.shuffle(places)
        now = monotonic()
        yield from sorted(places, key=lambda place: self._turn(place, now))

    def _turn(self, place: Place, now: float) -> float:
        """Return the sort key: 0 to try a host now, or until when to avoid it."""
        until, failures = self._bad.get(place, (0.0, 0))
        if until > now:
            return until
        if failures:
            # Until this connect has an outcome, others avoid the host.
            self._bad[place] = now + FIRST_PAUSE, failures
        return 0.0

    def works(self, place: Place) -> None:
        """Record a success."""
        self._bad.pop(place, None)

    def failed(self, place: Place, for_role: bool = False) -> None:
        """Avoid a host for a while; only for a moment if its role may soon change."""
        failures = 0 if for_role else self._bad.get(place, (0.0, 0))[1] + 1
        pause = pause_after(failures, FIRST_PAUSE, LONGEST_PAUSE)
        self._bad[place] = monotonic() + (ANOTHER_ROLE if for_role else pause), failures


class _Abandoned(NamedTuple):
    """A session that was closed before the server had answered."""

    server: tuple[str, int]
    #: The server's number for it, and the port of this end.
    thread_id: int
    port: int
    cause: str
    since: float
    #: Whether a connection should be opened for this, if no checkout needs one.
    is_urgent: bool


class Abandoned:
    """The statements of a pool that were given up, and may go on at the server.

    The next connection to the server kills them. Thread-safe.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._name = config.name
        self._sessions: deque[_Abandoned] = deque(maxlen=MOST_ABANDONED)
        #: The servers that do not list our ports: until when not to ask them.
        self._hidden: dict[tuple[str, int], float] = {}
        self._throttle = Throttle()
        #: The number of statements that were killed.
        self.killed = 0

    def __bool__(self) -> bool:
        since = monotonic() - FORGOTTEN
        return any(one.is_urgent and one.since > since for one in list(self._sessions))

    def add(self, con: Session) -> None:
        """Record a session that is being closed."""
        raw = con.raw
        if monotonic() < self._hidden.get((raw.host, raw.port), 0.0):
            return
        if con.interrupted:
            cause = "a close() by another thread"
        else:
            cause = "rows left unread" if con.lost is None else kind(con.lost)
        self._sessions.append(
            _Abandoned(
                server=(raw.host, raw.port),
                thread_id=raw.thread_id(),
                port=con.port,
                cause=cause,
                since=monotonic(),
                # After a failed set-up another connect would only fail in the same way.
                is_urgent=con.times is not None,
            )
        )

    def kill(self, con: Session, deadline: float) -> None:
        """Kill those at the server of a new connection which are certainly ours.

        The server has to list this connection with the port of our end, which tells
        that no proxy is between; and the other with the same account and host, its own
        port, and a statement. Raises PyMySQL's errors if the server does not answer.
        """
        server = con.raw.host, con.raw.port
        ours = self._take(server)
        if not ours:
            return
        found: dict[int, str] | None = None
        answers: list[Any] = []
        try:
            threads = {row["Id"]: row for row in con.ask("SHOW PROCESSLIST", deadline)}
            found = _found(threads, con, ours)
            if found:
                con.write([(COMMAND.COM_QUERY, b"KILL %d" % n) for n in found])
                answers = con.read_each(deadline)
        except MySQLError:
            if con.lost is not None or con.unanswered:
                self._sessions.extend(ours)
                raise
        if found is None:  # behind a proxy, or without such a statement
            self._hidden[server] = monotonic() + PORTS_HIDDEN
            return
        for (number, cause), answer in zip(found.items(), answers, strict=True):
            if isinstance(answer, MySQLError):
                continue  # it has just ended
            self.killed += 1
            held_back = self._throttle.passes(cause)
            if held_back is not None:
                text = "%s: killed thread %s at the server: its statement was given up"
                text += " (%s)%s"
                more = f"; and {held_back} more such" if held_back else ""
                log(WARNING, text, self._name, number, cause, more)

    def _take(self, server: tuple[str, int]) -> list[_Abandoned]:
        """Take out those of this server; forget those of long ago."""
        ours = []
        for _ in range(len(self._sessions)):
            try:
                one = self._sessions.popleft()
            except IndexError:
                break  # another connect has taken them
            if one.server != server:
                self._sessions.append(one)
            elif monotonic() < one.since + FORGOTTEN:
                ours.append(one)
        return ours


def _found(
    threads: dict[Any, dict[str, Any]], con: Session, ours: list[_Abandoned]
) -> dict[int, str] | None:
    """Return the threads to kill, each with the reason for which it was given up.

    None if the server does not list this connection with our port.
    """
    me = threads.get(str(con.raw.thread_id()), {})
    host, _, port = (me.get("Host") or "").rpartition(":")
    if port != str(con.port):
        return None
    found = {}
    for one in ours:
        thread = threads.get(str(one.thread_id), {})
        whose = thread.get("User"), thread.get("Host")
        is_ours = whose == (me["User"], f"{host}:{one.port}")
        if is_ours and thread["Command"] not in ("Sleep", "Killed"):
            found[one.thread_id] = one.cause
    return found


class Connector:
    """Opens connections according to one :class:`PoolConfig`."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.hosts = Hosts(config.places, in_random_order=config.host_order == "random")
        self._certificates = Certificates(config)
        self.abandoned = Abandoned(config)
        #: What is known of pipelining. CONNECT may lead elsewhere by the same address.
        self._pipelines = _PIPELINES if config.connect is None else {}
        #: Whether the last login at a host set nothing unusual; see :mod:`.login`.
        self._usual: dict[Place, bool] = {}
        #: The servers that have refused to reset a session: until when not to ask them.
        self._no_reset: dict[tuple[str, int], float] = {}

    def connect(self, deadline: float) -> Session:
        """Open a connection and set up its session, by the deadline.

        Try several hosts in turn, each within its share of the time, until one is
        suitable. Raises PyMySQL's errors: 2003 unreachable, 1045 refused, 1049 unknown
        database, …; 2003 or 2013 if the deadline passes.
        """
        try:
            return self._search(self._secret(), deadline)
        except OperationalError as error:
            rotates = callable(self.config.password)
            if error.args[0] != ER.ACCESS_DENIED_ERROR or not rotates:
                raise
        # The password may have been rotated since the function returned it.
        return self._search(self._secret(), deadline)

    def _secret(self) -> Secret:
        # No variable may contain the password: a traceback shows variables.
        if callable(self.config.password):
            return Secret(_ask(self.config.password))
        return Secret(self.config.password)

    def _search(self, secret: Secret, deadline: float) -> Session:
        """Try the hosts in their order, each for its share of the time."""
        refusals: dict[Place, OperationalError] = {}
        second_best: Session | None = None
        try:
            for tried, place in enumerate(self.hosts):
                share = (deadline - monotonic()) / (len(self.hosts) - tried)
                found = self._try(place, secret, monotonic() + share)
                if isinstance(found, OperationalError):
                    refusals[place] = found
                elif found.is_replica or self.config.target != "prefer-replica":
                    return found
                elif second_best is None:
                    second_best = found
                else:
                    found.close()
            if second_best is not None:
                found, second_best = second_best, None
                return found
        finally:
            if second_best is not None:
                second_best.close()
        raise _none_will_do(refusals)

    def _try(
        self, place: Place, secret: Secret, deadline: float
    ) -> Session | OperationalError:
        """Connect to one host; return the error if another host may succeed.

        If it may be that the host does not allow pipelining, try it again without.
        """
        address = self.config.unix_socket or place
        pipelines = {"on": True, "off": False}.get(
            self.config.pipelining, self._pipelines.get(address)
        )
        is_in_doubt = address in self._pipelines
        found = self._open(place, secret, deadline, pipelines)
        if pipelines is None and _may_be_by_pipelining(found):
            again = self._open(place, secret, deadline, False)
            if isinstance(again, Session):
                found = again
                self._pipelines[address] = False if is_in_doubt else None
                if is_in_doubt:
                    text = "%s: %s does not take several commands at once; they are"
                    text += " sent one at a time from now on (PIPELINING = 'off')"
                    log(WARNING, text, self.config.name, address)
        elif pipelines is None and isinstance(found, Session):
            self._pipelines[address] = True
        elif pipelines and _may_be_by_pipelining(found):
            # There may be a proxy by now: the next connect finds out.
            self._pipelines.pop(address, None)
        if isinstance(found, Session):
            self._usual[place] = found.login.is_usual
            self.hosts.works(place)
            return found
        failure, is_logged_in = found
        if not self._may_do_elsewhere(failure, is_logged_in):
            raise failure
        self.hosts.failed(place, for_role=isinstance(failure, AnotherRole))
        return failure

    def _open(
        self, place: Place, secret: Secret, deadline: float, pipelines: bool | None
    ) -> Session | tuple[BaseException, bool]:
        """Open a session; or return the error, and whether it came after the login.

        Where it is not known (None) whether it pipelines, leave time for a second try.

        An error before the login, or one that the server did not report, is an
        :exc:`~pymysql.err.OperationalError` with a number. It is returned, rather than
        raised in the driver's frames, because their variables contain the password.
        """
        connection = self._make(place, secret, deadline)
        connection.pipelines = pipelines is not False
        thorough, hasty = not self._usual.get(place), pipelines is None
        try:
            connection.open(deadline, thorough, hasty)
        except Exception as error:
            return _failure(connection, error), connection.is_logged_in
        except BaseException as error:
            return error.with_traceback(None), connection.is_logged_in
        return connection

    def _may_do_elsewhere(
        self, error: BaseException, logged_in: bool
    ) -> TypeGuard[OperationalError]:
        """Return whether another host may succeed where this one failed."""
        if len(self.hosts) == 1 or not isinstance(error, OperationalError):
            return False
        number = error.args[0]
        if number == ER.ACCESS_DENIED_ERROR:
            # A rotated password reaches replicas later than the primary.
            return callable(self.config.password)
        if not logged_in:
            return number not in SAME_ON_ALL_HOSTS
        # Proxies have their own numbers, or pass on the errors of a client library.
        of_a_proxy = 2000 <= number < 3000 or 9000 <= number < 10000
        return of_a_proxy or number in HOST_ERRORS

    def _make(self, place: Place, secret: Secret, deadline: float) -> Session:
        """Make a connection that is not open yet."""
        cause: BaseException | None = None
        try:
            connection = Session(self.config, self._arguments(place))
        except Exception as error:
            cause = without_traceback(error)
        if cause is not None:
            text = f"CONNECT_ARGS cannot be used ({cause!r})"
            raise OperationalError(CR.CR_UNKNOWN_ERROR, text) from cause
        if self.config.kill_abandoned:
            connection.abandoned = self.abandoned
        connection.no_reset = self._no_reset
        raw = connection.raw
        # Not among the arguments, which are variables of the driver's frames.
        raw.password = secret.value or raw.password
        config = self.config
        if not (raw.unix_socket or config.cleartext_plugin):
            raw._auth_plugin_map = IN_CLEAR | raw._auth_plugin_map
            if raw.password and config.ssl_mode != "DISABLED":
                raw.password = HashedOnly.of(raw)
        preferred = config.ssl_mode == "PREFERRED"
        if config.ssl_mode != "DISABLED" and not (preferred and config.unix_socket):
            raw.ssl, raw.ctx = True, self._certificates.context(deadline)
            raw._ssl_required = not preferred
        return connection

    def _arguments(self, place: Place) -> dict[str, Any]:
        config = self.config
        return {
            "host": place.host,
            "port": place.port,
            "unix_socket": config.unix_socket,
            "user": config.user,
            "database": config.database,
            "charset": config.charset,
            "collation": config.collation,
            "cursorclass": config.cursorclass,
            "read_timeout": longest(config.read_timeout),
            "write_timeout": longest(config.write_timeout),
            "program_name": f"{config.name} {socket.gethostname()} {os.getpid()}",
            **config.connect_args,
            # The set-up sends all in one round trip, where PyMySQL takes one for each;
            # and one TLS context serves all connections.
            "autocommit": None,
            "ssl_disabled": True,
            "defer_connect": True,
        }


def _may_be_by_pipelining(found: Session | tuple[BaseException, bool]) -> bool:
    """Return whether a connect failed as it does where pipelining is not allowed.

    The connection is then closed, or out of step, or silent after the first answer.
    """
    if isinstance(found, Session):
        return False
    error, is_logged_in = found
    number = error.args[0] if isinstance(error, MySQLError) and error.args else None
    return is_logged_in and number in LOST | {CR.CR_MALFORMED_PACKET}


def _failure(connection: Session, error: Exception) -> MySQLError:
    """Return the error to raise for one that occurred while connecting."""
    known = isinstance(error, MySQLError) and not isinstance(error, InternalError)
    kind: type[MySQLError] = OperationalError
    cause: BaseException | None = error
    number, text = (*error.args, None, None)[:2]
    if known and number and isinstance(number, int) and isinstance(text, str):
        if isinstance(error, NotAnswered):
            pass  # to a connect, it is silence like any other
        elif connection.is_logged_in or isinstance(error, OperationalError):
            kind = cast("type[MySQLError]", type(error))
        reason = getattr(error, "original_exception", None)
        cause = reason or error.__cause__ or error.__context__
        if number == CR.CR_AUTH_PLUGIN_ERR and isinstance(cause, TypeError):
            text = "the plug-in of auth_plugin_map did not answer with bytes"
    elif not connection.is_logged_in and isinstance(
        error, (RuntimeError, AttributeError)
    ):
        # A missing package, or a plug-in that the driver lacks (mysql_old_password).
        number, text = CR.CR_AUTH_PLUGIN_CANNOT_LOAD, str(error)
    elif isinstance(error, UnicodeEncodeError):
        number = CR.CR_UNKNOWN_ERROR
        text = (
            "USER, DATABASE, SQL_MODE, INIT_COMMAND or SETSESSION has a character that"
            f" CHARSET {connection.config.charset!r} lacks: change one of them"
        )
    else:
        raw = connection.raw
        number = CR.CR_MALFORMED_PACKET
        text = (
            f"What answers at {raw.unix_socket or raw.host!r} does not speak the"
            f" protocol of MySQL ({error or type(error).__name__})"
        )
    failure = kind(number, text)
    failure.sqlstate = getattr(error, "sqlstate", None)  # type: ignore[attr-defined]
    failure.__cause__ = cause and without_traceback(cause)
    return failure


def _none_will_do(refusals: dict[Place, OperationalError]) -> OperationalError:
    """Return one error for all hosts; an AnotherRole if waiting may help."""
    errors = list(refusals.values())
    passing = any(isinstance(e, AnotherRole) or e.args[0] in NOT_READY for e in errors)
    kind = AnotherRole if passing else OperationalError
    # A refused password may have been rotated, so that error takes precedence.
    denied = [e for e in errors if e.args[0] == ER.ACCESS_DENIED_ERROR]
    last = (denied or errors)[-1]
    said = "; ".join(f"{place}: {plain(e.args[1])}" for place, e in refusals.items())
    failure = kind(last.args[0], f"No host can be used ({said})")
    failure.__cause__ = last
    return failure
