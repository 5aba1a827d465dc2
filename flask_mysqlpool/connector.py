"""Opens connections as the settings say."""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import Any

from pymysql.constants import CR, ER
from pymysql.err import OperationalError

from .config import PoolConfig
from .connection import NOT_READY, AnotherRole, PhysicalConnection
from .hosts import Hosts, Place
from .tls import isolate
from .wire import longest

#: After these, another host may do better: out of reach, full, or about to stop.
ELSEWHERE = NOT_READY | {
    *(CR.CR_CONNECTION_ERROR, CR.CR_CONN_HOST_ERROR, CR.CR_UNKNOWN_HOST),
    *(CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST),
    *(ER.CON_COUNT_ERROR, ER.SERVER_SHUTDOWN, ER.HOST_IS_BLOCKED),
}

monotonic = time.monotonic


def program_name(pool: str) -> str:
    """What the server is told of a connection: the pool, this host, this process."""
    return f"{pool} {socket.gethostname()} {os.getpid()}"


class Connector:
    """Opens connections as one :class:`PoolConfig` says.

    The TLS context is made once: building it costs more than connecting.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.hosts = Hosts(config.places, in_random_order=config.host_order == "random")
        self._tls: ssl.SSLContext | None = None

    def connect(self, deadline: float) -> PhysicalConnection:
        """Open a connection and set its session up, all before the deadline.

        Of several hosts, each is tried within its share of the time, until one will
        do. Raises what PyMySQL raises (2003 unreachable, 1045 refused, 1049 unknown
        database, …). A deadline that passes on the way is a 2003 or a 2013.
        """
        try:
            return self._open(deadline)
        except OperationalError as error:
            rotates = callable(self.config.password)
            if error.args[0] != ER.ACCESS_DENIED_ERROR or not rotates:
                raise
        # It may have been changed between being given out and being used.
        return self._open(deadline)

    def _open(self, deadline: float) -> PhysicalConnection:
        password = self.config.password
        if callable(password):
            password = password()
        if len(self.hosts) == 1:
            [place] = self.hosts
            return self._open_at(place, password, deadline)
        return self._search(password, deadline)

    def _search(self, password: str | None, deadline: float) -> PhysicalConnection:
        """Try the hosts in their order, each for its share of the time."""
        refusals: list[tuple[Place, OperationalError]] = []
        second_best: PhysicalConnection | None = None
        try:
            for tried, place in enumerate(self.hosts):
                share = (deadline - monotonic()) / (len(self.hosts) - tried)
                found = self._try(place, password, monotonic() + share, refusals)
                if found is None:
                    continue
                if found.is_replica or self.config.target != "prefer-replica":
                    return found
                if second_best is None:
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
        self,
        place: Place,
        password: str | None,
        deadline: float,
        refusals: list[tuple[Place, OperationalError]],
    ) -> PhysicalConnection | None:
        """None, with the refusal noted, if another host may do."""
        try:
            found = self._open_at(place, password, deadline)
        except OperationalError as error:
            # Accounts reach replicas later than the primary.
            denied = error.args[0] == ER.ACCESS_DENIED_ERROR
            too_early = denied and callable(self.config.password)
            if error.args[0] not in ELSEWHERE and not too_early:
                raise
            self._note(place, error)
            refusals.append((place, error))
            return None
        self.hosts.works(place)
        return found

    def _note(self, place: Place, error: OperationalError) -> None:
        if isinstance(error, AnotherRole):
            self.hosts.has_another_role(place)
        else:
            self.hosts.failed(place)

    def _open_at(
        self, place: Place, password: str | None, deadline: float
    ) -> PhysicalConnection:
        connection = PhysicalConnection(self.config, self._arguments(place, password))
        raw = connection.raw
        if self._wants_tls():
            # Not a cached property: that has a lock, which a fork may leave held.
            self._tls = self._tls or self._make_tls()
            raw.ssl, raw.ctx = True, self._tls
            raw._ssl_required = self.config.ssl_mode != "PREFERRED"
        connection.open(deadline)
        return connection

    def _arguments(self, place: Place, password: str | None) -> dict[str, Any]:
        config = self.config
        return {
            "host": place.host,
            "port": place.port,
            "unix_socket": config.unix_socket,
            "user": config.user,
            # PyMySQL would take text for Latin-1, and the server takes it for UTF-8.
            "password": (password or "").encode(),
            "database": config.database,
            "charset": config.charset,
            "collation": config.collation,
            "cursorclass": config.cursorclass,
            "read_timeout": longest(config.read_timeout),
            "write_timeout": longest(config.write_timeout),
            "program_name": program_name(config.name),
            **config.connect_args,
            # PyMySQL would spend a round trip each on what `setup` does in one,
            # and build a TLS context for every connection.
            "autocommit": None,
            "ssl_disabled": True,
            "defer_connect": True,
        }

    def _wants_tls(self) -> bool:
        config = self.config
        preferred = config.ssl_mode == "PREFERRED"
        return config.ssl_mode != "DISABLED" and not (preferred and config.unix_socket)

    def _make_tls(self) -> ssl.SSLContext:
        """The TLS context for ``SSL_MODE``, which means what it means to ``mysql``."""
        config = self.config
        mode = config.ssl_mode
        try:
            context = ssl.create_default_context(cafile=config.ssl_ca)
            if config.ssl_cert is not None:
                context.load_cert_chain(config.ssl_cert, config.ssl_key)
        except OSError as error:
            raise OperationalError(
                CR.CR_SSL_CONNECTION_ERROR,
                f"SSL_CA, SSL_CERT or SSL_KEY cannot be used ({error})",
            ) from error
        # The certificates that MySQL makes for itself fail the strict check that
        # Python 3.13 turned on.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = mode == "VERIFY_IDENTITY"
        if mode not in ("VERIFY_CA", "VERIFY_IDENTITY"):
            context.verify_mode = ssl.CERT_NONE
        isolate(context)
        return context


def _none_will_do(refusals: list[tuple[Place, OperationalError]]) -> OperationalError:
    """One error for all hosts; of a kind that is worth waiting for, if one is."""
    passing = any(
        isinstance(error, AnotherRole) or error.args[0] in NOT_READY
        for _, error in refusals
    )
    kind = AnotherRole if passing else OperationalError
    # A password that is refused may be a new one by now; so that is what is raised.
    denied = [e for _, e in refusals if e.args[0] == ER.ACCESS_DENIED_ERROR]
    last = (denied or [refusals[-1][1]])[-1]
    said = "; ".join(f"{place}: {error.args[1]}" for place, error in refusals)
    failure = kind(last.args[0], f"No host can be used ({said})")
    failure.__cause__ = last
    return failure
