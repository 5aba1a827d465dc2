"""Opens connections as the settings say."""

from __future__ import annotations

import ssl
from typing import Any

from pymysql.constants import CR, ER
from pymysql.err import OperationalError

from .config import PoolConfig
from .connection import PhysicalConnection


class Connector:
    """Opens connections as one :class:`PoolConfig` says.

    The TLS context is made once: building it costs more than connecting.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._tls: ssl.SSLContext | None = None

    def connect(self, deadline: float) -> PhysicalConnection:
        """Open a connection and set its session up, all before the deadline.

        Raises what PyMySQL raises (2003 unreachable, 1045 refused, 1049 unknown
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
        connection = PhysicalConnection(self.config, self._arguments(password))
        raw = connection.raw
        if self._wants_tls():
            # Not a cached property: that has a lock, which a fork may leave held.
            self._tls = self._tls or self._make_tls()
            raw.ssl, raw.ctx = True, self._tls
            raw._ssl_required = self.config.ssl_mode != "PREFERRED"
        connection.open(deadline)
        return connection

    def _arguments(self, password: str | None) -> dict[str, Any]:
        config = self.config
        return {
            "host": config.host,
            "port": config.port,
            "unix_socket": config.unix_socket,
            "user": config.user,
            # PyMySQL would take text for Latin-1, and the server takes it for UTF-8.
            "password": (password or "").encode(),
            "database": config.database,
            "charset": config.charset,
            "collation": config.collation,
            "cursorclass": config.cursorclass,
            "read_timeout": config.read_timeout,
            "write_timeout": config.write_timeout,
            "program_name": config.name,
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
        return context
