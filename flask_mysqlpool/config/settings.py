"""The settings: default, converter and documentation of each.

A setting is one field. Its converter returns the typed value or raises
:exc:`Invalid`, and accepts its own output, so that a config built directly is held to
the same rules as one read from a mapping. In a fault's text ``{MAX_SIZE}`` stands for
that setting as the user writes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from . import validators
from .addresses import Place, parse
from .foreign_names import FOREIGN
from .option_file import FROM_FILE, names_a_file
from .parser import PLACES, PREFIX, Reader, arguments

if TYPE_CHECKING:
    from pymysql.cursors import Cursor


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
    if name in _POOL or name in FOREIGN:
        hint = f"write {{{name.upper()}}}" if name in _POOL else FOREIGN[name]
        return f"may not hold {name}: {hint}"
    known = arguments()
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"holds {name!r:.60}, which pymysql.connect does not take{hint}"


_HIDDEN = {"secret", "quiet"}


def _setting(
    default: Any, convert: Callable[[Any], Any], doc: str, **about: object
) -> Any:
    """Make a field. ``unit`` is for the documentation; a ``secret`` value is shown
    nowhere, nor is a ``quiet`` one: a statement, which may contain a secret."""
    kind: Any = "default_factory" if callable(default) else "default"
    metadata = {"convert": convert, "doc": doc, **about}
    return field(**{kind: default}, repr=not _HIDDEN & about.keys(), metadata=metadata)


def _duration(default: float | None, doc: str, *, zero: bool = True) -> Any:
    what = (
        f"seconds, {'0 or more' if zero else 'more than 0'}, at most {validators.YEAR}"
    )
    fits = validators.number(
        float, what, lambda n: 0 <= n <= validators.YEAR and (zero or n > 0)
    )
    return _setting(default, fits, doc, unit="seconds")


_SSL_MODES = "DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"
_RESETS = "auto", "always", "transaction"

URL = _setting(
    None,
    validators.url,
    "Server, account and database in one; the single settings win over it.",
    secret=True,
)
"""The setting ``URL``; its parts become other settings, so it is no field."""

BINDS = _setting(
    dict,
    validators.binds,
    "Further pools by name, each a mapping of settings; those that it leaves out are"
    " inherited from the default pool.",
    secret=True,
)
"""The setting ``BINDS``; its entries become pools."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """All settings of one pool.

    Durations are seconds, as floats. An invalid setting raises ConfigError, whether the
    config is built directly or by :meth:`from_mapping`.
    """

    host: str = _setting(
        "localhost",
        validators.host,
        "The server's name or IP address; or several, ``db1:3306,db2:3306``.",
    )
    port: int = _setting(3306, validators.whole(1, 65535), "The server's TCP port.")
    max_lag: float | None = _duration(
        None, "How far a replica may lag behind its primary; unset: unlimited."
    )
    readers: str | None = _setting(
        None,
        validators.word,
        "The bind that ``get_db(readonly=True)`` uses instead of this pool.",
    )
    host_order: str = _setting(
        "given",
        validators.choice("given", "random"),
        "The order in which several hosts are tried: given or random.",
    )
    target: str = _setting(
        "any",
        validators.choice("any", "primary", "replica", "prefer-replica"),
        "The hosts to connect to: any, primary (writable), replica (read-only), or"
        " prefer-replica.",
    )
    unix_socket: str | None = _setting(
        None,
        validators.path,
        "Path of the server's Unix socket; used instead of HOST and PORT.",
    )
    user: str | None = _setting(
        None,
        validators.label,
        "The account's name; by default that of the system's user, as in PyMySQL.",
    )
    password: str | Callable[[], str] | None = _setting(
        None,
        validators.password,
        "The account's password, or a callable that returns it at each connect.",
        secret=True,
    )
    database: str | None = _setting(
        None, validators.label, "The default database of statements."
    )
    charset: str = _setting(
        "utf8mb4", validators.charset, "Character set of the session."
    )
    collation: str | None = _setting(
        None,
        validators.text(r"[A-Za-z0-9_]+", "a collation"),
        "Collation of the session; by default the server's for the character set.",
    )
    sql_mode: str | None = _setting(
        None,
        validators.text(".*", "text"),
        "SQL mode of the session; by default the server's.",
    )
    read_only: bool = _setting(
        False, validators.flag, "Whether sessions are read-only."
    )
    init_command: str | None = _setting(
        None,
        validators.statement,
        "A statement to run after each connect.",
        quiet=True,
    )
    autocommit: bool = _setting(
        False,
        validators.flag,
        "Whether each statement commits automatically; off, as in PEP 249.",
    )
    cursorclass: type[Cursor] = _setting(
        "Cursor",
        validators.cursorclass,
        "The default class of cursors, such as DictCursor.",
    )
    connect_timeout: float = _duration(
        10.0, "Maximum duration of a whole connect.", zero=False
    )
    read_timeout: float | None = _duration(
        None,
        "Maximum time to wait for an answer; unset: unlimited.",
        zero=False,
    )
    write_timeout: float | None = _duration(
        None, "Maximum time to send a statement; unset: unlimited.", zero=False
    )
    ssl_mode: str = _setting(
        "PREFERRED",
        validators.choice(*_SSL_MODES),
        "Whether to use TLS, and what to verify, as in the mysql client. By default"
        " VERIFY_CA with SSL_CA, and REQUIRED with SSL_CERT alone.",
    )
    ssl_ca: str | None = _setting(
        None,
        validators.file,
        "File of trusted certificate authorities; by default the system's.",
    )
    ssl_cert: str | None = _setting(
        None, validators.file, "File of the client's certificate."
    )
    ssl_key: str | None = _setting(
        None, validators.file, "File of the client's private key, not encrypted."
    )
    cleartext_plugin: bool = _setting(
        False,
        validators.flag,
        "Whether a server that is not verified may request the password in clear text"
        " or, without TLS, encrypted with a key that it sends.",
    )
    connect_args: Mapping[str, Any] = _setting(
        dict,
        _connect_args,
        "Further arguments of ``pymysql.connect``, as a mapping.",
        secret=True,
    )
    min_size: int = _setting(
        0, validators.whole(0), "Connections that a process keeps open."
    )
    max_size: int = _setting(
        10,
        validators.whole(1),
        "Maximum number of connections of a process, including those being opened.",
    )
    timeout: float = _duration(
        10.0,
        "Maximum time to wait for a connection; 0: do not wait for one in use.",
    )
    max_waiting: int = _setting(
        0,
        validators.whole(0),
        "Maximum number of waiting checkouts; further ones fail at once. 0: unlimited.",
    )
    max_lifetime: float = _duration(
        1800.0,
        "Age at which a connection is replaced, with a jitter of ±10 %; 0: never.",
    )
    max_idle: float = _duration(
        600.0,
        "Maximum idle time, after which a connection is closed; 0: unlimited.",
    )
    max_usage: int = _setting(
        0,
        validators.whole(0),
        "Checkouts after which a connection is replaced; 0: never.",
    )
    ping_after: float = _duration(
        30.0, "Idle time after which a connection is pinged before it is lent."
    )
    reset_session: str = _setting(
        "auto",
        validators.choice(*_RESETS),
        "How a returned session is cleaned: auto, always or transaction; see below.",
    )
    setsession: tuple[str, ...] = _setting(
        (),
        validators.statements,
        "Statements to run on every new or cleaned session.",
        quiet=True,
    )
    max_host_connections: int | None = _setting(
        None,
        validators.whole(1),
        "Maximum number of connections of all processes of this host together.",
    )
    leak_threshold: float = _duration(
        0.0,
        "Time in use after which a connection is logged, with the stack of its"
        " checkout; 0: never.",
    )
    record_queries: bool = _setting(
        False,
        validators.flag,
        "Whether statements are recorded, for ``get_recorded_queries()``.",
    )
    slow_query: float = _duration(
        0.0, "Duration from which on a statement is logged as slow; 0: never."
    )
    log_parameters: bool = _setting(
        False,
        validators.flag,
        "Whether the parameters of statements are recorded and logged, too.",
    )
    backend: str | type = _setting(
        "pooled",
        validators.backend,
        "pooled; null, which connects for each checkout; or a subclass of ``Pool``.",
    )
    name: str = _setting(
        "mysqlpool",
        validators.label,
        "The pool's name in messages, in status and at the server.",
    )

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, prefix: str = "", name: str | None = None
    ) -> PoolConfig:
        """Read one pool's settings; keys are upper or, without prefix, lower case.

        Keys that do not begin with ``prefix`` are ignored; ``name`` is the default for
        ``NAME``. Raises ConfigError, which lists every fault.
        """
        reader = Reader(_POOL, prefix)
        values = reader.pool(reader.take(mapping, _POOL))
        reader.finish()
        return cls(**({} if name is None else {"name": name}) | values)

    def __post_init__(self) -> None:
        reader, known = Reader(_POOL), _settings(PoolConfig)
        reader.written = {key: key for key in known}
        values = {key: getattr(self, key) for key in known}
        given = {
            k: v
            for k, v in values.items()
            if v is not None or known[k].default is not None
        }
        if self.ssl_mode == known["ssl_mode"].default:
            del given["ssl_mode"]
        if names_a_file(self.connect_args):
            # A value that equals the default may not have been given.
            given = {
                k: v
                for k, v in given.items()
                if k not in FROM_FILE or v != known[k].default
            }
        values = {k: f.default for k, f in known.items() if k not in given}
        values |= reader.pool(given)
        reader.finish()
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def places(self) -> tuple[Place, ...]:
        """The hosts with their ports."""
        return parse(self.host, self.port)

    @property
    def account(self) -> str | None:
        """The account's name: ``USER`` or, as in PyMySQL, the system's user."""
        from pymysql.connections import DEFAULT_USER

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


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """All settings that the extension reads from ``app.config``."""

    pools: Mapping[str, PoolConfig]
    status_dir: str | None = _setting(
        "mysqlpool",
        validators.folder,
        "Folder in which workers publish their status, relative to the instance folder;"
        " False: none.",
    )
    handle_errors: bool = _setting(
        True,
        validators.flag,
        "Whether an unhandled timeout is answered with 503.",
    )
    cli: str | None = _setting(
        "mysqlpool", validators.command, "Name of the command group; False: none."
    )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, name: str) -> AppConfig:
        """Read all keys that begin with ``MYSQLPOOL_``, and ignore others.

        ``name`` is the app's name, the default for ``NAME``. Raises ConfigError,
        which lists every fault.
        """
        own = _settings(cls)
        reader = Reader(_POOL, PREFIX, own.keys() | {"binds"})
        known = own | _POOL | {"binds": BINDS}
        given = reader.take(mapping, known)
        reader.near_misses(mapping, known)
        values = reader.convert(given, own)
        if "max_host_connections" in given and values.get("status_dir", "") is None:
            reader.fault("max_host_connections", "needs {STATUS_DIR}, which is False")
        binds = reader.convert(given, {"binds": BINDS}).get("binds", {})
        has_place = bool(given.keys() & PLACES)
        if not (has_place or binds or reader.faults):
            reader.no_server(mapping, known)
        found = {"default": {"name": name} | reader.pool(given)}
        default = found["default"]
        for bind, settings in binds.items():
            label = f"{default['name']}/{bind}"
            found[bind] = {"name": label} | reader.inherit(bind, settings, given)
        for settings in found.values():
            if settings.get("readers") not in (None, *found):
                text = "must name one of {BINDS}"
                reader.fault("readers", text, repr(settings["readers"]))
        reader.finish()
        if not has_place:
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
