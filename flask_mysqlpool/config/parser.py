"""Parses mappings of settings into values, and collects every fault.

Each setting has its own validator; the rules that concern several settings are here. A
fault names a setting as the user wrote it, or would have to write it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field
from typing import Any, NamedTuple

from ..errors import ConfigError
from . import foreign_names, option_file
from .validators import Invalid, mode_of, shown

PREFIX = "MYSQLPOOL_"
"""The prefix of every setting in ``app.config``."""

_PLACES = {"url", "host", "port", "unix_socket", "user", "password", "database"}
_PLACES |= {"connect_args"}
"""Settings that locate a pool's server: without any of these there is no pool."""

#: Keys that Flask-MySQL-Connector sets.
_CONNECTOR_KEYS = {"MYSQL_POOL_NAME", "MYSQL_POOL_SIZE", "MYSQL_POOL_RESET_SESSION"}

#: Environment variables in which providers pass the URL of a database.
_OF_PROVIDERS = (
    *("DATABASE_URL", "MYSQL_URL", "MARIADB_URL", "JAWSDB_URL", "JAWSDB_MARIA_URL"),
    *("CLEARDB_DATABASE_URL", "MYSQL_DATABASE_URL", "STACKHERO_MYSQL_DATABASE_URL"),
)
_DATABASE_URL = re.compile("(mysql|mariadb)[+:]")

#: Prefixes of other packages' settings of a server.
_OTHERS = re.compile("(MYSQL|SQLALCHEMY|DATABASE)_")

_FILES = {"ssl_ca", "ssl_cert", "ssl_key"}

#: A bind that sets one of the first inherits none of the second.
_SAME_PLACE = [
    ({"url"}, {"host", "port", "unix_socket"}),
    ({"host", "port", "connect"}, {"unix_socket"}),
    ({"ssl_cert", "ssl_key"}, {"ssl_cert", "ssl_key"}),
    ({"ssl_context"}, _FILES),
]
_BELONG_TOGETHER = [
    *_SAME_PLACE,
    ({"unix_socket"}, {"host", "port", "connect"}),
    (_FILES, {"ssl_context"}),
    ({"user"}, {"password"}),
    ({"charset"}, {"collation"}),
]

_OF_TLS = _FILES | {"ssl_context"}
_WITHOUT_EFFECT = {"DISABLED": _OF_TLS, "PREFERRED": _OF_TLS, "REQUIRED": {"ssl_ca"}}
"""The settings that each mode of TLS does not use."""

_NOT_NONE = {"url": "URL", "user": "name", "unix_socket": "path"}
_NOT_NONE |= dict.fromkeys(sorted(_FILES), "file") | {"ssl_context": "context"}
"""Settings that a bind cannot set to None, which would weaken it, and their kinds."""

Known = Mapping[str, Field[Any]]
"""Settings by their names in lower case; ``convert`` is in each field's metadata."""


class Raw(NamedTuple):
    """A setting as it was given."""

    key: str
    value: Any
    #: Whether it is from the URL or an option file. Faults do not quote its value.
    is_part: bool = False


class Section:
    """The settings of one pool as they were given, and the faults found in them."""

    def __init__(
        self,
        known: Known,
        prefix: str | None = "",
        app_wide: Known | None = None,
        bind: str = "",
    ) -> None:
        self.known = known
        #: What keys begin with; None for arguments of Python, in lower case.
        self.prefix = prefix
        #: Settings of the whole app, which a bind cannot have.
        self.app_wide = app_wide or {}
        self.bind = bind
        self.accepted = known if bind else {**known, **self.app_wide}
        self.raw: dict[str, Raw] = {}
        #: Keys of optional settings that were given as None.
        self.omitted: dict[str, str] = {}
        #: Keys of parameters of the URL that have no effect.
        self.ignored: list[str] = []
        self.broken: set[str] = set()
        self.faults: list[str] = []

    # Keys and faults

    def spelled(self, written: str) -> str:
        if self.bind:
            key = shown(written) if "@" in written else f'"{written}"'
            return f'{PREFIX}BINDS["{self.bind}"][{key}]'
        return (self.prefix or "") + written

    def key(self, name: str, *, to_write: bool = False) -> str:
        """Return a setting's key as the user wrote it, or would have to write it."""
        if name in self.raw and not (to_write and self.raw[name].is_part):
            return self.raw[name].key
        spelled = self.spelled(name if self.prefix is None else name.upper())
        return self.omitted.get(name, spelled)

    def format_keys(self, text: str) -> str:
        """Replace each ``{NAME}`` by the key to write."""

        def key(match: re.Match[str]) -> str:
            return self.key(match[1].lower(), to_write=True)

        return re.sub(r"\{([A-Z_]+)\}", key, text)

    def fault(self, name: str, text: str, got: str = "") -> None:
        self.broken.add(name)
        variable = f"BINDS__{self.bind}__" * bool(self.bind) + name.upper()
        text = self.format_keys(text).replace("{}", variable)
        if got and not self._is_part(name):
            text += f" (got {got})"
        self.faults.append(f"{self.key(name)} {text}")

    def hint(self, name: str, known: Collection[str] = ()) -> str:
        """Return what to write instead of an unknown name; "" if it resembles none."""
        if self.bind and name in self.app_wide:
            return f"write {PREFIX}{name.upper()}, which is for the whole app"
        return self.format_keys(foreign_names.hint(name, known or self.accepted))

    def unknown(self, key: str, hint: str) -> None:
        self.faults.append(f"{key} is not a setting: {hint}".removesuffix(": "))

    # From a mapping to values

    def take(self, mapping: Mapping[str, Any]) -> None:
        """Take the values of known settings; every other key is a fault."""
        prefix = self.prefix or ""
        for key, value in mapping.items():
            if not str(key).startswith(prefix):
                continue
            written = str(key)[len(prefix) :]
            name, shown = written.lower(), self.spelled(written)
            right_case = written.isupper() or (written == name and not prefix)
            if name not in self.accepted or not right_case:
                self.unknown(shown, self.hint(name))
            elif name in self.raw or name in self.omitted:
                self.fault(name, f"is given twice, also as {shown}")
            # from_prefixed_env() turns a password "null" into None: that is a fault.
            elif value is self.accepted[name].default is None and name != "password":
                self.omitted[name] = shown
            else:
                self.raw[name] = Raw(shown, value)

    def pool(self, default: Section | None = None) -> dict[str, Any]:
        """Return the values of one pool, a bind if there is a ``default`` one.

        Settings win over the parts of the URL, and these over the option file.
        """
        if default is not None:
            self._refuse_none(default)
        self._split_url()
        self._read_option_file()
        has_account = self.bind or self._is_part("user")
        has_place = "url" in self.broken or self.raw.keys() & {"host", "unix_socket"}
        if "url" in self.raw and has_account and not has_place:
            self.fault("url", "must name a server; a variable in it may be empty")
        if default is not None:
            self._inherit(default)
        values = self.convert(name for name in self.known if name != "url")
        if "ssl_mode" not in self.raw and self.raw.keys() & _OF_TLS:
            # As in the mysql client: files for TLS imply a mode that uses them.
            values["ssl_mode"] = "VERIFY_CA" if "ssl_ca" in self.raw else "REQUIRED"
        defaults = {k: f.default for k, f in self.known.items()} | {"connect_args": {}}
        self._compare(defaults | values)
        if self.ignored:
            values["ignored"] = tuple(self.ignored)
        return values

    def convert(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of these settings that are given and valid."""
        values = {}
        for name in names:
            if name not in self.raw:
                continue
            setting, given = self.accepted[name], self.raw[name].value
            try:
                values[name] = setting.metadata["convert"](given)
            except Invalid as invalid:
                got = _got(given, hidden=not setting.repr)
                if name == "url" and isinstance(given, str):
                    got = ""
                for text in invalid.args:
                    self.fault(name, text, got)
        return values

    def _split_url(self) -> None:
        """Add the parts of the URL."""
        url = self.key("url")
        for label, text in self.convert(["url"]).get("url", {}).items():
            found, key = foreign_names.translate(label, text), f"{url} ({label})"
            if found is None:
                self.ignored.append(key)
                continue
            name, text = found
            if name == "ssl_mode" and self._is_part(name):
                text = foreign_names.stricter(self.raw.pop(name).value, text)
            if name not in self.known or name == "url":
                others = self.known.keys() - {"url"}
                self.unknown(key, self.hint(name.lower(), others))
            elif name not in self.raw:
                self.raw[name] = Raw(key, text, is_part=True)

    def _read_option_file(self) -> None:
        """Replace the option file in CONNECT_ARGS by its options."""
        if "connect_args" not in self.raw:
            return
        key, arguments, _ = self.raw["connect_args"]
        try:
            others, options = option_file.split(arguments)
        except Invalid as invalid:
            self.fault("connect_args", *invalid.args)
            return
        self.raw["connect_args"] = Raw(key, others)
        own = self._own(_SAME_PLACE)
        if "ssl_ca" in options.keys() - own:
            options.setdefault("ssl_mode", ("TLS", "VERIFY_IDENTITY"))
        for name, (option, text) in options.items():
            if name not in own:
                shown = f"{key} (read_default_file: {option})"
                self.raw[name] = Raw(shown, text, is_part=True)

    def _refuse_none(self, default: Section) -> None:
        """Refuse None where it would weaken what a bind inherits.

        It may be that of a missing environment variable. A socket may be None where
        there is a host.
        """
        has_host = {*self.raw, *default.raw} & {"url", "host"}
        for name, what in _NOT_NONE.items():
            if name in self.omitted and not (name == "unix_socket" and has_host):
                self.fault(name, f"must be a {what}, or be left out", "None")

    def _inherit(self, default: Section) -> None:
        """Take most settings that a bind omits from the default pool.

        Take none that belong to another server or another account.
        """
        own = self._own(_BELONG_TOGETHER) | {"name", "url", "readers"}
        own |= self.omitted.keys() | default.broken
        if "replica" not in str(self._given("target", "replica")).lower():
            own.add("max_lag")
        if self.bind != default._given("readers"):
            # A library that uses the bind may depend on its class of rows.
            own.add("cursorclass")
        inherited = default.raw.keys() & self.known.keys() - own
        self.raw |= {name: default.raw[name] for name in inherited}
        if not (self.has_place or "url" in self.broken):
            self.faults.append(f"{self.key('url')} must say where the server is")

    @property
    def has_place(self) -> bool:
        return bool(self.raw.keys() & _PLACES)

    def _is_part(self, name: str) -> bool:
        return name in self.raw and self.raw[name].is_part

    def _given(self, name: str, default: object = None) -> object:
        return self.raw[name].value if name in self.raw else default

    def _own(self, together: list[tuple[set[str], set[str]]]) -> set[str]:
        """Return the settings that are given, or excluded by one that is given."""
        own = {*self.raw, *_unused(self._given("ssl_mode"))}
        for some, others in together:
            if self.raw.keys() & some:
                own |= others
        return own

    def _compare(self, values: Mapping[str, Any]) -> None:
        """Check the rules that concern several settings, if each one is valid."""
        low, high = values["min_size"], values["max_size"]
        if low > high and not self.broken & {"min_size", "max_size"}:
            text = f"must be at most {self.key('max_size')}"
            self.fault("min_size", text, f"{low} and {high}")
        if low and values["backend"] == "null":
            self.fault(
                "min_size", "must be 0 where {BACKEND} is null, which keeps none"
            )
        if values["ssl_key"] and not (values["ssl_cert"] or "ssl_cert" in self.broken):
            self.fault("ssl_key", "needs {SSL_CERT} beside it")
        if values["max_lag"] is not None and "replica" not in values["target"]:
            self.fault("max_lag", "needs {TARGET} to be replica or prefer-replica")
        if values["unix_socket"] and "," in values["host"]:
            self.fault("host", "must be one where {UNIX_SOCKET} is set")
        if values["connect"] is not None:
            if values["unix_socket"]:
                self.fault("connect", "must be left out where {UNIX_SOCKET} is set")
            if "bind_address" in values["connect_args"]:
                text = "may not hold bind_address where {CONNECT} opens the sockets"
                self.fault("connect_args", text)
        self._compare_tls(values)

    def _compare_tls(self, values: Mapping[str, Any]) -> None:
        mode, context = values["ssl_mode"], values["ssl_context"]
        if context is not None:
            for name in sorted(_FILES):
                if values[name]:
                    self.fault(name, "must be left out where {SSL_CONTEXT} is set")
            its_mode = mode_of(context)
            strictest = foreign_names.stricter(mode, its_mode)
            if "ssl_mode" in self.raw and strictest != its_mode:
                what = "host name" if its_mode == "VERIFY_CA" else "certificate"
                text = f"must be {its_mode}, as {{SSL_CONTEXT}} verifies no {what}"
                self.fault("ssl_mode", text, mode)
        for name in sorted(_unused(mode)):
            if values[name] and (context is None or name == "ssl_context"):
                text = f"must be left out where {{SSL_MODE}} is {mode}"
                if mode != "DISABLED":
                    stricter = "VERIFY_CA" if name == "ssl_ca" else "REQUIRED"
                    text += f", which may not use it: set {stricter} or a stricter one"
                self.fault(name, text)
        in_clear = mode == "DISABLED" and not values["unix_socket"]
        if "server_public_key" in values["connect_args"] and not in_clear:
            text = "may not hold server_public_key, which TLS and a socket do not use:"
            text += " leave it out, or set {SSL_MODE} = 'DISABLED'"
            self.fault("connect_args", text)

    # Mistakes in the settings of an app

    def near_misses(self, mapping: Mapping[str, Any]) -> None:
        """Refuse keys whose prefix resembles ours: they would be ignored."""
        for key, value in mapping.items():
            alike = re.fullmatch(r"(?i)(mysqlpool|mysql_pool)_(\w+)", str(key))
            if str(key).startswith(PREFIX) or key in _CONNECTOR_KEYS:
                continue
            if str(key).upper() + "_" == PREFIX and isinstance(value, Mapping):
                text = "write each key of it as a setting, such as {URL}"
                self.unknown(key, self.format_keys(text))
            elif alike and (hint := self.hint(alike[2].lower())):
                self.unknown(key, hint)

    def no_server(self, mapping: Mapping[str, Any]) -> None:
        """Add the fault that no server is configured, and name the likely cause."""
        text = (
            f"no server is configured: set {PREFIX}URL (or {PREFIX}HOST, …) before"
            " MySQLPool(app) or init_app(app)"
        )
        for variable in _OF_PROVIDERS:
            if _DATABASE_URL.match(os.environ.get(variable, "")):
                text += f"; {variable} is in the environment: write"
                text += f' app.config["{PREFIX}URL"] = os.environ["{variable}"]'
                break
        unread = [name for name in os.environ if _is_unread(name, mapping)]
        if unread:
            places = [f"FLASK_{PREFIX}URL", f"FLASK_{PREFIX}HOST"]
            name = min(unread, key=lambda name: (name not in places, name))
            text += f"; {name} is in the environment: call"
            text += " app.config.from_prefixed_env() first"
        instead = {f"write {PREFIX}{place.upper()}" for place in _PLACES}
        for key in map(str, mapping):
            hint = self.hint(key.lower()) if _OTHERS.match(key) else ""
            # By DATABASE, Flask's tutorial means a file of SQLite.
            if key.isupper() and key.lower() in _PLACES - {"database"}:
                text += f"; {key} has no prefix: write {PREFIX}{key}"
                break
            if hint in instead:
                text += f"; {key} is another package's: {hint}"
                break
        self.faults.append(text)


def check(*sections: Section) -> None:
    """Raise ConfigError if there are faults."""
    if faults := [fault for section in sections for fault in section.faults]:
        raise ConfigError(faults)


def _unused(ssl_mode: object) -> set[str]:
    """Return the settings that this mode of TLS does not use."""
    return _WITHOUT_EFFECT.get(str(ssl_mode).upper(), set())


def _is_unread(variable: str, mapping: Mapping[str, Any]) -> bool:
    """Tell whether an environment variable is a setting that the mapping lacks."""
    key = variable.removeprefix("FLASK_").partition("__")[0]
    return variable.startswith(f"FLASK_{PREFIX}") and key not in mapping


def _got(value: object, hidden: bool) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    if hidden or not plain:
        return f"a value of type {type(value).__name__}"
    return shown(value)
