"""The TLS context of a pool: made once, and again when one of its files is another."""

from __future__ import annotations

import os
import ssl
import time

from pymysql.constants import CR
from pymysql.err import OperationalError

from ...config import PoolConfig
from .tls import isolate

#: Seconds for which a renewal may be half done: one file replaced, another not yet.
RENEWAL, RENEWAL_STEP = 1.0, 0.02

monotonic = time.monotonic
_Identity = tuple[int, ...]


class Certificates:
    """Makes the context that ``SSL_MODE`` and the files of ``SSL_…`` ask for.

    Making one costs more than connecting; looking at the files costs microseconds.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: tuple[list[_Identity], ssl.SSLContext] | None = None

    def context(self, deadline: float) -> ssl.SSLContext:
        """The context by the files as they are now.

        Files that have been replaced, and cannot be read or do not fit together, are
        looked at again for a while. Raises a 2026 if they are still no good then.
        """
        give_up = min(deadline, monotonic() + RENEWAL) if self._made else 0.0
        while True:
            # Before they are read: what changes meanwhile is read by the next connect.
            identities = self._identities()
            # No lock: that could be held at a fork. Two threads may make one each.
            made = self._made
            # gevent may have replaced the class meanwhile: with gunicorn --preload.
            if (
                made is not None
                and made[0] == identities
                and isinstance(made[1], ssl.SSLContext)
            ):
                return made[1]
            try:
                context = self._make()
            except OSError as error:
                failure = OperationalError(
                    CR.CR_SSL_CONNECTION_ERROR,
                    f"SSL_CA, SSL_CERT or SSL_KEY cannot be used ({error})",
                )
                failure.__cause__ = error.with_traceback(None)
            else:
                self._made = identities, context
                return context
            if monotonic() >= give_up:
                raise failure
            time.sleep(RENEWAL_STEP)

    def _identities(self) -> list[_Identity]:
        """What tells each file from one that replaces it, links followed."""
        config = self._config
        files = [config.ssl_ca, config.ssl_cert, config.ssl_key]
        if self._verifies and config.ssl_ca is None:
            files.append(ssl.get_default_verify_paths().cafile)
        return [_identity(file) for file in files if file is not None]

    @property
    def _verifies(self) -> bool:
        return self._config.ssl_mode in ("VERIFY_CA", "VERIFY_IDENTITY")

    def _make(self) -> ssl.SSLContext:
        """A context in which each mode means what it means to ``mysql``."""
        config = self._config
        if self._verifies:
            context = ssl.create_default_context(cafile=config.ssl_ca)
            # The certificates that MySQL makes for itself fail the strict check that
            # Python 3.13 turned on.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.check_hostname = config.ssl_mode == "VERIFY_IDENTITY"
        else:
            # Without the system's authorities, which take 20 ms to load.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if config.ssl_ca is not None:
                context.load_verify_locations(config.ssl_ca)
        if config.ssl_cert is not None:
            # With a password, for OpenSSL would ask the terminal for that of a key.
            context.load_cert_chain(config.ssl_cert, config.ssl_key, password="")
        isolate(context)
        return context


def _identity(file: str) -> _Identity:
    try:
        about = os.stat(file)
    except OSError:
        return ()
    changed = about.st_mtime_ns, about.st_ctime_ns
    return about.st_dev, about.st_ino, about.st_size, *changed
