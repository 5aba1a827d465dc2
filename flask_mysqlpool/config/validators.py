"""Converters, one for each kind of value.

A converter returns the typed value or raises :exc:`Invalid`, and accepts its own
output. In the text of a fault ``{MAX_SIZE}`` stands for that setting as the user writes
it, and ``{}`` for the setting at fault.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any
from urllib.parse import unquote

from pymysql.charset import charset_by_name
from pymysql.cursors import Cursor

from .addresses import ONE_OF_SEVERAL

#: Opens the socket to a server: host, port and seconds left.
Connect = Callable[[str, int, float], socket.socket]

YEAR = 31_536_000  # PyMySQL's own bound on its timeouts
_INT = r"-?(0|[1-9][0-9]{0,17})"
_FLOAT = _INT + r"(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_URL = re.compile(
    r"mysql://(?:(?P<user>[^\s:@/?#]*)(?::(?P<password>[^\s/?#]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:@/?#\[\],]*)"
    r"(?::(?P<port>[0-9]+))?(?P<more>,[^\s@/?#]*)?(?:/(?P<database>[^\s@/?#]*))?"
    r"(?:\?(?P<query>(?:[\w.-]+=[^\s@#&]*(?:&[\w.-]+=[^\s@#&]*)*)?))?"
)
#: Of all drivers' names that SQLAlchemy knows, that of the one in use has no effect.
_SCHEME = re.compile(r"(?:mysql|mariadb)(?:\+pymysql)?://")
_ODD_PORT = re.compile(_URL.pattern.replace("<port>[0-9]+", "<port>[^\\s:@/?#]*"))
_PORT_HINT = "; the port is not a number"


class Invalid(Exception):
    """A value is invalid; each argument is a fault, and says what it must be."""


def shown(value: object) -> str:
    """Return the value for a message, but not text with an @, as of an URL."""
    return (
        f"{type(value).__name__} with an @" if "@" in str(value) else f"{value!r:.60}"
    )


def number(kind: Any, what: str, fits: Callable[[Any], bool]) -> Callable[[Any], Any]:
    form = re.compile(_INT if kind is int else _FLOAT)

    def convert(value: Any) -> Any:
        if isinstance(value, str) and form.fullmatch(value):
            value = kind(value)
        if type(value) in (int, kind) and fits(value):
            return kind(value)
        raise Invalid(f"must be {what}")

    return convert


def whole(low: int, high: int = 10**18) -> Callable[[Any], Any]:
    bounds = f"{low} or more" if high == 10**18 else f"{low} to {high}"
    return number(int, f"a whole number, {bounds}", lambda n: low <= n <= high)


seconds = number(float, f"seconds, 0 or more, at most {YEAR}", lambda n: 0 <= n <= YEAR)
positive_seconds = number(
    float, f"seconds, more than 0, at most {YEAR}", lambda n: 0 < n <= YEAR
)


def text(pattern: str, what: str, number: bool = False) -> Callable[[Any], str]:
    """Accept text that matches a pattern; with ``number``, whole numbers, too."""

    def convert(value: Any) -> str:
        if number and type(value) is int:
            value = str(value)
        if isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL):
            return value
        hint = "" if isinstance(value, str) else f"; {_QUOTE}"
        raise Invalid(f"must be {what}{hint}")

    return convert


def choice(*allowed: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        for one in allowed:
            if isinstance(value, str) and value.lower() == one.lower():
                return one
        raise Invalid(f"must be one of {', '.join(allowed)}")

    return convert


_QUOTE = """in the environment, quote it, as in FLASK_MYSQLPOOL_{}='"1e10"'"""
#: Settings are shown, so they may not be a URL with a password.
_NO_URL = "(?!.*://.*@)"
_WORD = (
    _NO_URL + r"(?!\s)[^\x00-\x1f\x7f]+(?<!\s)",
    "text with no blanks around it, not empty (a URL goes to {URL})",
)
word = text(*_WORD)
# from_prefixed_env() turns a database called 2024 into a number, without any loss.
label = text(*_WORD, number=True)
sql_mode = text(_NO_URL + ".*", "text (a URL goes to {URL})")
statement = text(r".*\S.*", "an SQL statement, as text")
_host = text(
    r"(?![^:]*:[^:]*$)[^\s\x00-\x1f/@\[\],]+",
    "a bare host name or address (a port goes to {PORT}, a socket to {UNIX_SOCKET}, "
    "a URL to {URL})",
)


def host(value: Any) -> str:
    """Accept one host, or several separated by commas, each with an optional port."""
    hosts = value.split(",") if isinstance(value, str) else value
    if not isinstance(hosts, list | tuple) or len(hosts) < 2:
        return _host(hosts[0] if isinstance(hosts, list | tuple) and hosts else value)
    hosts = [one.strip() if isinstance(one, str) else one for one in hosts]
    for one in hosts:
        form = isinstance(one, str) and ONE_OF_SEVERAL.fullmatch(one)
        if not form or not 1 <= int(form["port"] or 1) <= 65535:
            raise Invalid(
                "must be hosts with a comma between them, such as db1:3306,db2:3306;"
                f" this is none: {shown(one)}"
            )
    if len(set(hosts)) < len(hosts):
        raise Invalid("must not name one host twice")
    return ",".join(hosts)


def _as_bool(value: Any) -> bool | None:
    """Return True or False, also from its name in the environment; None for others."""
    names = {"true": True, "false": False}
    return names.get(str(value).lower()) if isinstance(value, bool | str) else None


def flag(value: Any) -> bool:
    if (found := _as_bool(value)) is not None:
        return found
    raise Invalid("must be True or False")


def password(value: Any) -> str | Callable[[], str]:
    if type(value) is int:
        return str(value)
    if isinstance(value, str) or callable(value):
        return value  # type: ignore[no-any-return]
    raise Invalid(f"must be text or a callable, or be left out for none; {_QUOTE}")


def path(value: Any) -> str:
    return word(os.fspath(value) if isinstance(value, os.PathLike) else value)


def or_false(convert: Callable[[Any], str], what: str) -> Callable[[Any], str | None]:
    """Accept False, too, which becomes None."""

    def convert_or_none(value: Any) -> str | None:
        # A "true" from the environment is a mistake, not a name.
        if _as_bool(value):
            raise Invalid(f"must be {what}, or False for none")
        return convert(value) if _as_bool(value) is None else None

    return convert_or_none


folder = or_false(path, "a folder's path")
command = or_false(
    text(r"\w[\w-]*", "a command's name, or False for none"), "a command's name"
)


def file(value: Any) -> str:
    if os.path.isfile(name := path(value)):
        return name
    raise Invalid("must name a file that exists")


def ssl_context(value: Any) -> ssl.SSLContext:
    if isinstance(value, ssl.SSLContext) and value.protocol != ssl.PROTOCOL_TLS_SERVER:
        return value
    raise Invalid(
        "must be an ssl.SSLContext for clients, such as ssl.create_default_context()"
    )


def mode_of(context: ssl.SSLContext) -> str:
    """Return the strictest ``SSL_MODE`` that the context fulfils."""
    if context.verify_mode == ssl.CERT_NONE:
        return "REQUIRED"
    return "VERIFY_IDENTITY" if context.check_hostname else "VERIFY_CA"


def charset(value: Any) -> str:
    if charset_by_name(charset := word(value)):
        return charset
    raise Invalid("must be a character set that PyMySQL knows: write utf8mb4")


def statements(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(statement(one) for one in value)
    raise Invalid("must be a list of SQL statements; put a single one into a list")


def _imported(path: str) -> Any:
    try:
        return resolve_name(path)
    except Exception:  # a module may raise anything on its import
        return None


def backend(value: Any) -> str | type:
    """Accept ``pooled``, ``null`` or a subclass of Pool, recognized by its name."""
    if isinstance(value, str) and value.lower() in ("pooled", "null"):
        return value.lower()
    found = _imported(value) if isinstance(value, str) else value
    if isinstance(found, type):
        bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
        if "flask_mysqlpool.pool.pool.Pool" in bases:
            return found
    raise Invalid(
        "must be pooled, null, or a subclass of flask_mysqlpool.Pool or its dotted path"
    )


def connect(value: Any) -> Connect:
    found = _imported(value) if isinstance(value, str) else value
    if callable(found):
        return found  # type: ignore[no-any-return]
    raise Invalid(
        "must be a callable (host, port, timeout) that returns a socket, or the dotted"
        " path of one that can be imported"
    )


#: The module of the cursors RowCursor and SSRowCursor.
_OWN_CURSORS = "flask_mysqlpool.pool.sql.rows"


def cursorclass(value: Any) -> type[Cursor]:
    found = value
    if isinstance(value, str):
        place = (
            _OWN_CURSORS if value in ("RowCursor", "SSRowCursor") else "pymysql.cursors"
        )
        found = _imported(value if "." in value else f"{place}.{value}")
    if isinstance(found, type) and issubclass(found, Cursor):
        return found
    raise Invalid(
        "must be a subclass of pymysql.cursors.Cursor or the name of one: Cursor, "
        "DictCursor, RowCursor, SSCursor, SSDictCursor, SSRowCursor, or a dotted path "
        "that can be imported"
    )


def binds(value: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        raise Invalid("must be a mapping: {'reports': {'URL': …}, …}")
    faults = []
    for name, settings in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            faults.append(
                f"may not have a bind called {shown(name)}: letters, digits, . _ -"
            )
        elif name == "default":
            faults.append(
                "may not have a bind called 'default': that is the pool itself"
            )
        elif not isinstance(settings, Mapping):
            faults.append(f"must have a mapping of settings for {name!r}: {{'URL': …}}")
    if faults:
        raise Invalid(*faults)
    return dict(value)


def url(value: Any) -> dict[str, str]:
    """Split a URL into its parts, each of which its own setting validates.

    A fault quotes nothing of the URL: with a password that is not escaped, any part
    may contain a piece of it.
    """
    scheme = _SCHEME.match(value) if isinstance(value, str) else None
    if scheme is None:
        raise Invalid("must begin with mysql:// or mariadb://, with no driver's name")
    value = f"mysql://{value[scheme.end() :]}"
    form = _URL.fullmatch(value)
    if form is None or re.search(r"%(?![0-9A-Fa-f]{2})", value):
        port = "" if form or not _ODD_PORT.fullmatch(value) else _PORT_HINT
        raise Invalid(
            "must have the form mysql://user:password@host:port/database?charset=…, "
            "special characters percent-encoded (@ is %40, / is %2F, # is %23, ? is "
            f"%3F, % is %25){port}"
        )
    if form["user"] == "":
        raise Invalid(
            "must name a server and an account; a variable in it may be empty"
        )
    parts = {name: text for name, text in form.groupdict().items() if text}
    if more := parts.pop("more", ""):
        port = f":{parts.pop('port')}" if "port" in parts else ""
        parts["host"] = parts.get("host", "") + port + more
    else:
        parts["host"] = parts.get("host", "").strip("[]")
    pairs = [pair.split("=", 1) for pair in parts.pop("query", "").split("&") if pair]
    pairs += [[name, text] for name, text in parts.items() if text]
    if len(pairs) > len({name.replace("-", "_") for name, _ in pairs}):
        raise Invalid("must not say one thing twice: a parameter repeats another part")
    try:
        return {name: unquote(text, errors="strict") for name, text in pairs}
    except UnicodeDecodeError:
        raise Invalid("must have percent-encoded UTF-8 in it") from None
