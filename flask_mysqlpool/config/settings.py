"""The settings: default, validator and documentation of each.

A setting is one field. Its validator returns the typed value or raises :exc:`Invalid`,
and accepts its own output, so that a config built directly is held to the same rules as
one read from a mapping. The docstring of a field is its sentence in the documentation,
where a unit is added to durations.
"""

from __future__ import annotations

import difflib
import ssl
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import Field, dataclass, field, fields
from typing import Any

from pymysql.connections import DEFAULT_USER
from pymysql.cursors import Cursor

from . import validators
from .addresses import Place, parse
from .foreign_names import SSL_MODES, arguments, instead
from .parser import PREFIX, Raw, Section, check


def _connect_args(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise validators.Invalid("must be a mapping of arguments of pymysql.connect")
    faults = [text for name in value if (text := _argument_fault(name))]
    if faults:
        raise validators.Invalid(*faults)
    return dict(value)


def _argument_fault(name: object) -> str | None:
    if not isinstance(name, str):
        return "must have text for its keys, the names of arguments"
    if hint := f"write {{{name.upper()}}}" if name in _POOL else instead(name):
        return f"may not hold {name}: {hint}"
    known = arguments()
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"holds {validators.shown(name)}, which pymysql.connect does not take{hint}"


def _setting(
    default: Any, convert: Callable[[Any], Any], *, secret: bool = False
) -> Any:
    """Make a field. The value is shown nowhere if it is, or may contain, a secret."""
    kind: Any = "default_factory" if default is dict else "default"
    return field(**{kind: default}, repr=not secret, metadata={"convert": convert})


URL = _setting(None, validators.url, secret=True)
"""Server, account and database in one; the single settings win over it."""
# Its parts become other settings, so it is no field.

BINDS = _setting(dict, validators.binds, secret=True)
"""Further pools by name, each a mapping of settings; those that it leaves out are
inherited from the default pool."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """All settings of one pool.

    Durations are seconds, as floats. An invalid setting raises ConfigError, whether the
    config is built directly or by :meth:`from_mapping`.
    """

    host: str = _setting("localhost", validators.host)
    """The server's name or IP address; or several, ``db1:3306,db2:3306``."""
    port: int = _setting(3306, validators.whole(1, 65535))
    """The server's TCP port."""
    max_lag: float | None = _setting(None, validators.seconds)
    """How far a replica may lag behind its primary; unset: unlimited."""
    readers: str | None = _setting(None, validators.word)
    """The bind that ``get_db(readonly=True)`` uses instead of this pool."""
    host_order: str = _setting("given", validators.choice("given", "random"))
    """The order in which several hosts are tried: given or random."""
    target: str = _setting(
        "any", validators.choice("any", "primary", "replica", "prefer-replica")
    )
    """The hosts to connect to: any, primary (writable), replica (read-only), or
    prefer-replica."""
    unix_socket: str | None = _setting(None, validators.path)
    """Path of the server's Unix socket; used instead of HOST and PORT."""
    user: str | None = _setting(None, validators.label)
    """The account's name; by default that of the system's user, as in PyMySQL."""
    password: str | Callable[[], str] | None = _setting(
        None, validators.password, secret=True
    )
    """The account's password, or a callable that returns it at each connect."""
    database: str | None = _setting(None, validators.label)
    """The default database of statements."""
    charset: str = _setting("utf8mb4", validators.charset)
    """Character set of the session."""
    collation: str | None = _setting(
        None, validators.text(r"[A-Za-z0-9_]+", "a collation")
    )
    """Collation of the session; by default the server's for the character set."""
    sql_mode: str | None = _setting(None, validators.sql_mode)
    """SQL mode of the session; by default the server's."""
    read_only: bool = _setting(False, validators.flag)
    """Whether sessions are read-only."""
    init_command: str | None = _setting(None, validators.statement, secret=True)
    """A statement to run after each connect."""
    autocommit: bool = _setting(False, validators.flag)
    """Whether each statement commits automatically; off, as in PEP 249."""
    cursorclass: type[Cursor] = _setting(Cursor, validators.cursorclass)
    """The default class of cursors, such as DictCursor."""
    connect_timeout: float = _setting(10.0, validators.positive_seconds)
    """Maximum duration of a whole connect."""
    read_timeout: float | None = _setting(None, validators.positive_seconds)
    """Maximum time to wait for an answer; unset: unlimited."""
    write_timeout: float | None = _setting(None, validators.positive_seconds)
    """Maximum time to send a statement; unset: unlimited."""
    keepalive: float = _setting(60.0, validators.seconds)
    """Idle time after which TCP probes a connection, so that routers keep it, and a cut
    one is noticed; 0: as the system is set."""
    connect: validators.Connect | None = _setting(None, validators.connect, secret=True)
    """A callable ``(host, port, timeout)`` that opens the socket to the server, or its
    dotted path; see below."""
    ssl_mode: str = _setting("PREFERRED", validators.choice(*SSL_MODES))
    """Whether to use TLS, and what to verify, as in the mysql client. By default
    VERIFY_CA with SSL_CA, and REQUIRED with SSL_CERT alone or SSL_CONTEXT."""
    ssl_ca: str | None = _setting(None, validators.file)
    """File of trusted certificate authorities; by default the system's."""
    ssl_cert: str | None = _setting(None, validators.file)
    """File of the client's certificate."""
    ssl_key: str | None = _setting(None, validators.file)
    """File of the client's private key, not encrypted."""
    ssl_context: ssl.SSLContext | None = _setting(
        None, validators.ssl_context, secret=True
    )
    """An ``ssl.SSLContext`` to use instead of SSL_CA, SSL_CERT and SSL_KEY."""
    cleartext_plugin: bool = _setting(False, validators.flag)
    """Whether a server that is not verified may request the password in clear text or,
    without TLS, encrypted with a key that it sends."""
    pipelining: str = _setting("auto", validators.choice("auto", "on", "off"))
    """Whether commands are sent before those ahead of them are answered: auto tries it
    once with each server, as some proxies do not allow it."""
    kill_abandoned: bool = _setting(True, validators.flag)
    """Whether a statement that was given up, as by READ_TIMEOUT or an interrupt, is
    killed at the server."""
    connect_args: Mapping[str, Any] = _setting(dict, _connect_args, secret=True)
    """Further arguments of ``pymysql.connect``, as a mapping."""
    min_size: int = _setting(0, validators.whole(0))
    """Connections that a process keeps open."""
    max_size: int = _setting(10, validators.whole(1))
    """Maximum number of connections of a process, including those being opened."""
    timeout: float = _setting(10.0, validators.seconds)
    """Maximum time to wait for a connection; 0: do not wait for one in use."""
    max_waiting: int = _setting(0, validators.whole(0))
    """Maximum number of waiting checkouts; further ones fail at once. 0: unlimited."""
    max_lifetime: float = _setting(1800.0, validators.seconds)
    """Age at which a connection is replaced, with a jitter of ±10 %; 0: never."""
    max_idle: float = _setting(600.0, validators.seconds)
    """Maximum idle time, after which a connection is closed; 0: unlimited."""
    max_usage: int = _setting(0, validators.whole(0))
    """Checkouts after which a connection is replaced; 0: never."""
    ping_after: float = _setting(30.0, validators.seconds)
    """Idle time after which a connection is pinged before it is lent."""
    reset_session: str = _setting(
        "auto", validators.choice("auto", "always", "transaction")
    )
    """How a returned session is cleaned: auto, always or transaction; see below."""
    setsession: tuple[str, ...] = _setting((), validators.statements, secret=True)
    """Statements to run on every new or cleaned session."""
    max_host_connections: int | None = _setting(None, validators.whole(1))
    """Maximum number of connections of all processes of this host together."""
    leak_threshold: float = _setting(0.0, validators.seconds)
    """Time in use after which a connection is logged, with the stack of its checkout;
    0: never."""
    record_queries: bool = _setting(False, validators.flag)
    """Whether statements are recorded, for ``get_recorded_queries()``."""
    slow_query: float = _setting(0.0, validators.seconds)
    """Duration from which on a statement is logged as slow; 0: never."""
    log_parameters: bool = _setting(False, validators.flag)
    """Whether the parameters of statements are recorded and logged, too."""
    statement_comments: bool = _setting(False, validators.flag)
    """Whether each statement begins with a comment that names the pool and the
    endpoint, for the server's process list and its slow log."""
    backend: str | type = _setting("pooled", validators.backend)
    """pooled; null, which connects for each checkout; or a subclass of ``Pool``."""
    name: str = _setting("mysqlpool", validators.label)
    """The pool's name in messages, in status and at the server."""

    #: Parameters of the URL that have no effect; no setting.
    ignored: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, prefix: str = "", name: str | None = None
    ) -> PoolConfig:
        """Read one pool's settings; keys are upper or, without prefix, lower case.

        Keys that do not begin with ``prefix`` are ignored; ``name`` is the default for
        ``NAME``. Raises ConfigError, which lists every fault.
        """
        section = Section(_POOL, prefix)
        section.take(mapping)
        values = section.pool()
        check(section)
        return cls(**({} if name is None else {"name": name}) | values)

    def __post_init__(self) -> None:
        section = Section(_POOL, prefix=None)
        for key, setting in _settings(PoolConfig).items():
            value, default = getattr(self, key), setting.default
            # A value that equals the default may not have been given.
            if type(value) is not type(default) or value != default:
                section.raw[key] = Raw(key, value)
        values = section.pool()
        check(section)
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def places(self) -> tuple[Place, ...]:
        """The hosts with their ports."""
        return parse(self.host, self.port)

    @property
    def account(self) -> str | None:
        """The account's name: ``USER`` or, as in PyMySQL, the system's user."""
        return self.user or DEFAULT_USER

    @property
    def server(self) -> str:
        """Server and database: ``127.0.0.1:3306/shop`` or ``/run/my.sock/shop``."""
        place = self.unix_socket or ",".join(map(str, self.places))
        return place if self.database is None else f"{place}/{self.database}"

    def settings(self) -> dict[str, object]:
        """Return all settings for display: upper-case keys, plain values, no secret."""
        known = _settings(PoolConfig).items()
        return {
            key.upper(): _shown(getattr(self, key), not setting.repr)
            for key, setting in known
        }


def altered(config: PoolConfig, **settings: Any) -> PoolConfig:
    """Return a copy with some settings replaced by valid ones.

    Unlike :func:`dataclasses.replace`, it validates nothing: a file that the config
    names may be missing by now, which the next connect tells.
    """
    copied = copy(config)
    vars(copied).update(settings)
    return copied


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """All settings that the extension reads from ``app.config``."""

    pools: Mapping[str, PoolConfig]
    status_dir: str | None = _setting("mysqlpool", validators.folder)
    """Folder in which workers publish their status, relative to the instance folder;
    False: none."""
    handle_errors: bool = _setting(True, validators.flag)
    """Whether an unhandled timeout, or a server out of reach, is answered with 503."""
    radar: bool | None = _setting(None, validators.flag)
    """Whether the statements of each request are counted, and those that are repeated
    or use no index are logged; unset: in debug mode."""
    cli: str | None = _setting("mysqlpool", validators.command)
    """Name of the command group; False: none."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, name: str) -> AppConfig:
        """Read all keys that begin with ``MYSQLPOOL_``, and ignore others.

        ``name`` is the app's name, the default for ``NAME``. Raises ConfigError,
        which lists every fault.
        """
        own = _settings(cls)
        app = Section(_POOL, PREFIX, own | {"binds": BINDS})
        app.take(mapping)
        app.near_misses(mapping)
        values = app.convert(own)

        def pool(section: Section, default: Section | None = None) -> dict[str, Any]:
            settings, limit = section.pool(default), "max_host_connections"
            if limit in settings and values.get("status_dir", "") is None:
                section.fault(limit, f"needs {PREFIX}STATUS_DIR, which is False")
            return settings

        binds = app.convert(["binds"]).get("binds", {})
        if not (app.has_place or binds or app.faults):
            app.no_server(mapping)
        sections, found = {"default": app}, {"default": {"name": name} | pool(app)}
        for bind, settings in binds.items():
            section = sections[bind] = Section(_POOL, app_wide=app.app_wide, bind=bind)
            section.take(settings)
            label = f"{found['default']['name']}/{bind}"
            found[bind] = {"name": label} | pool(section, app)
        for bind, settings in found.items():
            if (readers := settings.get("readers")) not in (None, *found):
                text = f"must name one of {PREFIX}BINDS"
                sections[bind].fault("readers", text, validators.shown(readers))
        check(*sections.values())
        if not app.has_place:
            # They are defaults for the binds only.
            del found["default"]
        return cls(pools={b: PoolConfig(**s) for b, s in found.items()}, **values)


def _settings(owner: type) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(owner) if f.metadata}


_POOL = {"url": URL, **_settings(PoolConfig)}


def _shown(value: Any, secret: bool) -> object:
    if secret and isinstance(value, Mapping):
        return dict.fromkeys(value, "***")
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, tuple):
        return ["***" if secret else one for one in value]
    return "***" if secret and value is not None else value
