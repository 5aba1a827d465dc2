"""Names that other packages have for our settings, and what to write instead.

``{MAX_SIZE}`` stands for that setting as the user writes it. Names are found with or
without what separates their words.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection

from pymysql.connections import Connection

_INSTEAD = {
    "write {MAX_SIZE}": "maxconnections pool_size size maxsize"
    " connections max_conn max_pool_size pool_max_size max connection_limit",
    "write {MAX_SIZE}, the size and the overflow together": "max_overflow overflow",
    "write {MIN_SIZE}": "mincached pre_create_num minsize minconn min_connections"
    " min_pool_size",
    "write {MAX_SIZE} and {MAX_IDLE}, which bound the idle ones": "maxcached",
    "write {TIMEOUT}, where 0 means never to wait": "blocking",
    "write {TIMEOUT}": "pool_timeout retry_num retry_interval wait_timeout"
    " checkout_timeout acquire_timeout wait_for_connections",
    "write {MAX_LIFETIME}": "pool_recycle recycle con_lifetime max_age conn_max_age"
    " lifetime stale_timeout",
    "write {MAX_IDLE}": "idle_timeout max_idle_time",
    "write {MAX_USAGE}": "maxusage",
    "write {PING_AFTER}": "ping",
    "write {RESET_SESSION}": "reset pool_reset_on_return",
    "write {SETSESSION} = [\"SET time_zone = '+00:00'\"]": "time_zone"
    " server_time_zone connection_time_zone",
    "write {SETSESSION} = ['SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED']": (
        "isolation_level transaction_isolation tx_isolation"
    ),
    "write {URL}": "uri dsn",
    "write {HOST}": "hostname server",
    "write {UNIX_SOCKET}": "socket_path database_socket socket mysql_database_socket",
    "write {DATABASE}": "db db_name schema database_name",
    "write {USER}": "username",
    "write {PASSWORD}": "passwd pass pwd",
    "write {CURSORCLASS} = 'DictCursor'": "dict_cursor",
    "write {NAME}": "pool_name program_name pool_logging_name logging_name",
    "write {BACKEND}": "poolclass",
    "write {CONNECT_ARGS}": "extra_kwargs custom_options options",
    "write {SSL_MODE}": "ssl ssl_disabled ssl_verify_cert ssl_verify_identity"
    " use_ssl require_ssl ssl_accept tls use_tls verify_server_certificate ssl_verify"
    " ssl_check_hostname trust_server_certificate reject_unauthorized",
    "write {SSL_CA}": "ssl_root_cert ca_file ssl_ca_file ssl_ca_cert tls_ca"
    " server_ssl_cert",
    "write {SSL_CERT}": "ssl_cert_file tls_cert ssl_identity",
    "write {SSL_KEY}": "ssl_key_file tls_key",
    "write {CONNECT_TIMEOUT}": "connection_timeout login_timeout",
    "write {READ_TIMEOUT}": "socket_timeout",
    "write {MAX_WAITING}": "queue_limit",
    "write {CHARSET}": "character_encoding encoding",
    "write {COLLATION}": "connection_collation",
    "write each of them as a setting, such as {MAX_SIZE}": "arguments engine_options"
    " pool_options queuepool",
    "write {BINDS}": "databases",
    "leave it out, no dead connection is handed out": "pool_pre_ping pre_ping"
    " reconnect auto_reconnect max_reconnects",
    "leave it out, it has no counterpart": "maxshared failures pool_use_lifo use_lifo"
    " creator isfatal use_threadlocal threadlocals echo echo_pool engine"
    " track_modifications",
    "leave it out, the pool decides when to connect": "defer_connect",
    "leave it out, the key's file may not be encrypted": "ssl_key_password"
    " ssl_password",
    "leave it out, PyMySQL does not support it": "compress named_pipe use_compression"
    " allow_public_key_retrieval ssl_cipher ssl_crl tls_version",
}


_OFF = {"false": "DISABLED", "0": "DISABLED", "disabled": "DISABLED"}
_ON = {"true": "REQUIRED", "1": "REQUIRED", "required": "REQUIRED"}
_ANY_SERVER = {"skip_verify": "REQUIRED", '{"rejectunauthorized":false}': "REQUIRED"}
_VERIFIED = {'{"rejectunauthorized":true}': "VERIFY_IDENTITY"}

#: Parameters in the URLs of providers and of other clients that say whether to use TLS,
#: without what separates their words: SSL_MODE for each of their values.
_MODES: dict[str, dict[str, str]] = {
    # libpq and several providers
    "sslmode": {
        **{"disable": "DISABLED", "allow": "PREFERRED", "prefer": "PREFERRED"},
        **{"require": "REQUIRED", "verify_ca": "VERIFY_CA"},
        **{"verify_full": "VERIFY_IDENTITY", "verify_identity": "VERIFY_IDENTITY"},
    },
    # Prisma
    "sslaccept": {"strict": "VERIFY_IDENTITY", "accept_invalid_certs": "REQUIRED"},
    # JDBC
    "usessl": _OFF | _ON,
    "requiressl": {"true": "REQUIRED", "false": "DISABLED"},
    "verifyservercertificate": {"true": "VERIFY_CA", "false": "DISABLED"},
    # Go, where true means a server that is verified
    "tls": _OFF
    | _ANY_SERVER
    | {"true": "VERIFY_IDENTITY", "preferred": "PREFERRED", "prefer": "PREFERRED"},
    # Node.js
    "ssl": _OFF | _ON | _ANY_SERVER | _VERIFIED,
}
#: Other parameters, and the settings that have their values.
_SAME = {"sslrootcert": "ssl_ca", "sslcertificate": "ssl_cert"}
#: Parameters without effect here: a pool replaces lost connections, text is Unicode,
#: and values are converted.
_WITHOUT_EFFECT = frozenset(
    "reconnect autoreconnect useunicode parsetime allowpublickeyretrieval".split()
)


#: The values of SSL_MODE, from the least strict one.
SSL_MODES = "DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"


def stricter(mode: str, other: str) -> str:
    """Return the stricter of two values of SSL_MODE; of unknown ones, the known."""
    known = [each for each in (mode, other) if each in SSL_MODES]
    return max(known, key=SSL_MODES.index, default=other)


def translate(parameter: str, text: str) -> tuple[str, str] | None:
    """Return the setting that a parameter of a URL stands for, with its value.

    Return the parameter as it is if it is no foreign one, or has a value that is not
    known; and None if it has no effect here.
    """
    name = _squeezed(parameter.lower())
    if name in _WITHOUT_EFFECT:
        return None
    known = _MODES.get(name, {})
    mode = known.get(text.lower().replace("-", "_"))
    if mode is not None:
        return "ssl_mode", mode
    ours = "ssl_mode" if name == "sslmode" else _SAME.get(name, parameter)
    return ours.replace("-", "_"), text


def hint(name: str, known: Collection[str]) -> str:
    """Return what to write instead of an unknown name; "" if it resembles nothing."""
    bare = re.sub("^((mysql|mysqlpool|sqlalchemy|database)_)+", "", name)
    ours = {_squeezed(one): f"write {{{one.upper()}}}" for one in known}
    found = instead(name) or instead(bare) or ours.get(_squeezed(bare), "")
    if not found and bare in arguments():
        return f"write {{CONNECT_ARGS}} = {{'{bare}': …}}"
    if not found and (near := difflib.get_close_matches(name, known, 1, cutoff=0.7)):
        return f"write {{{near[0].upper()}}}"
    return found


def instead(name: str) -> str:
    """Return what to write instead of a name of another package; "" for others."""
    return _BY_NAME.get(_squeezed(name), "")


def arguments() -> list[str]:
    """Return the names of the arguments of pymysql.connect."""
    return [*inspect.signature(Connection.__init__).parameters][1:]


def _squeezed(name: str) -> str:
    """Return a name without what separates words: JDBC writes connectTimeout."""
    return re.sub("[._-]", "", name)


_BY_NAME = {
    _squeezed(name): hint for hint, names in _INSTEAD.items() for name in names.split()
}
