"""Parses a mapping into the values of settings, and collects every fault.

Each setting has its own converter; the rules that concern several settings are here. A
fault names a setting as the user wrote it, or would have to write it.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import Field
from typing import Any

from ..errors import ConfigError
from . import option_file, validators
from .foreign_names import FOREIGN

PREFIX = "MYSQLPOOL_"
"""The prefix of every setting in ``app.config``."""

PLACES = {"url", "host", "port", "unix_socket", "user", "password", "database"}
PLACES |= {"connect_args"}
"""Settings that locate a pool's server: without any of these there is no pool."""

#: Keys that Flask-MySQL-Connector sets.
_CONNECTOR_KEYS = {"MYSQL_POOL_NAME", "MYSQL_POOL_SIZE", "MYSQL_POOL_RESET_SESSION"}

#: Prefixes of other packages' settings of a server.
_OTHERS = re.compile("(MYSQL|SQLALCHEMY|DATABASE)_")

#: A bind that sets one of the first inherits none of the second.
_SAME_PLACE: list[tuple[set[str], set[str]]] = [
    ({"url"}, {"host", "port", "unix_socket"}),
    ({"host", "port"}, {"unix_socket"}),
    ({"ssl_cert", "ssl_key"}, {"ssl_cert", "ssl_key"}),
]
_BELONG_TOGETHER = [
    *_SAME_PLACE,
    ({"user"}, {"password"}),
    ({"charset"}, {"collation"}),
]

_FILES = {"ssl_ca", "ssl_cert", "ssl_key"}
_WITHOUT_EFFECT = {"DISABLED": _FILES, "PREFERRED": _FILES, "REQUIRED": {"ssl_ca"}}
"""The files that each mode of TLS does not use."""

_NOT_NONE = {"url": "URL", "user": "name", "unix_socket": "path"}
_NOT_NONE |= dict.fromkeys(sorted(_FILES), "file")
"""Settings that a bind cannot set to None, which would weaken it, and their kinds."""

Known = Mapping[str, Field[Any]]
"""Settings by their names in lower case; ``convert`` is in each field's metadata."""


class Reader:
    """Parses one mapping into values, and collects every fault."""

    def __init__(
        self,
        settings: Known,
        prefix: str = "",
        app_wide: Collection[str] = (),
        bind: str = "",
    ) -> None:
        #: The settings of one pool, and the names of those of the whole app.
        self.settings, self.app_wide = settings, app_wide
        self.prefix = prefix
        self.bind = bind
        self.written: dict[str, str] = {}
        #: Settings that come from the URL or the option file, and from the latter.
        self.from_url: set[str] = set()
        self.from_file: set[str] = set()
        self.broken: set[str] = set()
        self.faults: list[str] = []

    def key(self, name: str) -> str:
        """Return a setting's key as the user wrote it, or would have to write it."""
        return self.written.get(name, self.spelled(name.upper()))

    def spelled(self, written: str) -> str:
        if not self.bind:
            return self.prefix + written
        return f'{PREFIX}BINDS["{self.bind}"]["{written}"]'

    def format_key(self, text: str) -> str:
        """Replace ``{NAME}`` by the key to write; also for a part of the URL."""

        def key(name: str) -> str:
            plain = name in self.from_url
            return self.spelled(name.upper()) if plain else self.key(name)

        return re.sub(r"\{([A-Z_]+)\}", lambda m: key(m[1].lower()), text)

    def fault(self, name: str, text: str, got: str = "") -> None:
        self.broken.add(name)
        variable = f"BINDS__{self.bind}__" * bool(self.bind) + name.upper()
        text = self.format_key(text).replace("{}", variable)
        got = f" (got {got})" if got and name not in self.from_url else ""
        self.faults.append(f"{self.key(name)} {text}{got}")

    def unknown(self, key: str, name: str, known: Known) -> None:
        """Refuse an unknown key, with a hint what to write instead."""
        hint = self.hint(name, known)
        self.faults.append(f"{key} is not a setting{hint and ': '}{hint}")

    def hint(self, name: str, known: Known) -> str:
        bare = re.sub(r"^((mysql|mysqlpool|sqlalchemy|database)_)+", "", name)
        if self.bind and name in self.app_wide:
            return f"write {PREFIX}{name.upper()}, which is for the whole app"
        near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
        hint = FOREIGN.get(name) or FOREIGN.get(bare) or ""
        plain = {_squeezed(one): one for one in (*FOREIGN, *known)}
        if not hint and bare in known:
            hint = f"write {{{bare.upper()}}}"
        elif not hint and (same := plain.get(_squeezed(bare))):
            # JDBC and others write connectTimeout.
            hint = FOREIGN.get(same) or f"write {{{same.upper()}}}"
        elif not hint and bare in arguments():
            hint = f"write {{CONNECT_ARGS}} = {{'{bare}': …}}"
        elif not hint and near:
            hint = f"write {{{near[0].upper()}}}"
        return self.format_key(hint)

    def near_misses(self, mapping: Mapping[str, Any], known: Known) -> None:
        """Refuse keys that nearly have our prefix, and would be ignored."""
        for key, value in mapping.items():
            alike = re.fullmatch(r"(?i)(mysqlpool|mysql_pool)_(\w+)", str(key))
            if str(key).startswith(self.prefix) or key in _CONNECTOR_KEYS:
                continue
            if str(key).upper() + "_" == self.prefix and isinstance(value, Mapping):
                text = "write each key of it as a setting, such as {URL}"
                self.faults.append(f"{key} is not a setting: {self.format_key(text)}")
            elif alike and (hint := self.hint(alike[2].lower(), known)):
                self.faults.append(f"{key} is not a setting: {hint}")

    def no_server(self, mapping: Mapping[str, Any], known: Known) -> None:
        """Add the fault that there is no server, and name the likely cause."""
        text = (
            f"no server is configured: set {PREFIX}URL (or {PREFIX}HOST, …) before"
            " MySQLPool(app) or init_app(app)"
        )
        unread = [name for name in os.environ if _is_unread(name, mapping)]
        if unread:
            places = [f"FLASK_{PREFIX}{place.upper()}" for place in ("url", "host")]
            name = min(unread, key=lambda name: (name not in places, name))
            text += f"; {name} is in the environment: call"
            text += " app.config.from_prefixed_env() first"
        instead = {self.format_key(f"write {{{place.upper()}}}") for place in PLACES}
        for key in map(str, mapping):
            hint = self.hint(key.lower(), known) if _OTHERS.match(key) else ""
            if hint in instead:
                text += f"; {key} is another package's: {hint}"
                break
        self.faults.append(text)

    def take(self, mapping: Mapping[str, Any], known: Known) -> dict[str, Any]:
        """Take the values of known settings; every other key is a fault."""
        given = {}
        for key, value in mapping.items():
            if not str(key).startswith(self.prefix):
                continue
            written = str(key)[len(self.prefix) :]
            name, shown = written.lower(), self.spelled(written)
            right_case = written.isupper() or (written == name and not self.prefix)
            if name not in known or not right_case:
                self.unknown(shown, name, known)
            elif name in self.written:
                self.fault(name, f"is given twice, also as {shown}")
            else:
                self.written[name] = shown
                given[name] = value
        # from_prefixed_env() turns a password "null" into None, so that is no default.
        optional = {k for k in given if known[k].default is None} - {"password"}
        return {k: v for k, v in given.items() if v is not None or k not in optional}

    def convert(self, given: Mapping[str, Any], known: Known) -> dict[str, Any]:
        values = {}
        for name in [name for name in known if name in given]:
            about = known[name].metadata
            try:
                values[name] = about["convert"](given[name])
            except validators.Invalid as invalid:
                got = _got(given[name], "quiet" in about or "secret" in about)
                if name == "url" and isinstance(given[name], str):
                    got = ""
                for text in invalid.args:
                    self.fault(name, text, got)
        return values

    def url(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the parts of the URL, if it is given and valid."""
        values = self.convert(given, {"url": self.settings["url"]})
        parts: dict[str, str] = values.get("url", {})
        return parts

    def pool(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the values of one pool. Settings win over the parts of the URL."""
        known = {k: f for k, f in self.settings.items() if k != "url"}
        for name, text in self.url(given).items():
            label = f"{self.key('url')} ({name})"
            name = name.replace("-", "_")  # noqa: PLW2901
            if name not in known:
                self.unknown(label, name.lower(), known)
            elif name not in given:
                given[name] = text
                self.written[name] = label
                self.from_url.add(name)
        self.option_file(given, {})
        has_place = "url" in self.broken or given.keys() & {"host", "unix_socket"}
        has_account = self.bind or "user" in self.from_url
        if "url" in given and has_account and not has_place:
            self.fault("url", "must name a server; a variable in it may be empty")
        values = self.convert(given, known)
        if "ssl_mode" not in given and given.keys() & _FILES:
            # As in the mysql client: files for TLS imply a mode that uses them.
            values["ssl_mode"] = "VERIFY_CA" if "ssl_ca" in given else "REQUIRED"
        defaults = {k: f.default for k, f in known.items()} | {"connect_args": {}}
        self.compare(defaults | values)
        return values

    def option_file(self, given: dict[str, Any], parts: Mapping[str, Any]) -> None:
        """Replace the option file in CONNECT_ARGS by its options.

        Settings that are given, and ``parts`` of the URL, win over them.
        """
        arguments = given.get("connect_args")
        if not option_file.names_a_file(arguments):
            return
        arguments = given["connect_args"] = dict(arguments)
        path = arguments.pop("read_default_file", None)
        group = arguments.pop("read_default_group", None)
        try:
            options = option_file.read(path, group)
        except validators.Invalid as invalid:
            self.fault("connect_args", *invalid.args)
            return
        if "bind-address" in options:
            arguments.setdefault("bind_address", options.pop("bind-address"))
        skipped = {*given, *parts} | _unused({**parts, **given})
        for some, others in _SAME_PLACE:
            if skipped & some:
                skipped |= others
        for option, text in options.items():
            name = option_file.OPTIONS[option]
            if name not in skipped:
                self._take_option(given, option, name, text)
        if "ssl_mode" not in skipped | given.keys() and "ssl_ca" in self.from_file:
            self._take_option(given, "TLS", "ssl_mode", "VERIFY_IDENTITY")

    def _take_option(
        self, given: dict[str, Any], option: str, name: str, text: str
    ) -> None:
        self.written[name] = f"{self.key('connect_args')} (read_default_file: {option})"
        given[name] = text
        self.from_url.add(name)
        self.from_file.add(name)

    def finish(self) -> None:
        if self.faults:
            raise ConfigError(self.faults)

    def inherit(
        self, bind: str, settings: Mapping[str, Any], default: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the values of a bind, which inherits most settings that it omits.

        It inherits none that belong to another server or another account.
        """
        reader = Reader(self.settings, "", self.app_wide, bind)
        reader.faults = self.faults
        given = reader.take(settings, self.settings)
        for name, what in _NOT_NONE.items():
            # A missing environment variable must not weaken what the bind inherits;
            # a socket may be None where there is a host.
            if name == "unix_socket" and {*given, *default} & {"url", "host"}:
                continue
            if name in reader.written and name not in given:
                reader.fault(name, f"must be a {what}, or be left out", "None")
        parts = {k.replace("-", "_"): text for k, text in reader.url(given).items()}
        reader.option_file(given, parts)
        own = {*reader.written, *parts} | _unused(parts | given)
        if "unix_socket" in given:
            own |= {"host", "port"}
        for some, others in _BELONG_TOGETHER:
            if own & some:
                own |= others
        if "replica" not in str(given.get("target", "replica")).lower():
            own.add("max_lag")
        if "url" in reader.broken:
            given.pop("url", None)
        own |= {"name", "url", "readers", *self.broken}
        if bind != default.get("readers"):
            # A library that uses the bind may depend on its class of rows.
            own.add("cursorclass")
        for name in default.keys() & self.settings.keys() - own:
            given[name] = default[name]
            reader.written[name] = self.key(name)
            reader.from_url |= {name} & self.from_url
        if not given.keys() & PLACES and "url" not in reader.broken:
            reader.faults.append(f"{reader.key('url')} must say where the server is")
        return reader.pool(given)

    def compare(self, values: Mapping[str, Any]) -> None:
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
        for name in sorted(_unused(values)):
            if values[name]:
                mode = values["ssl_mode"]
                text = f"must be left out where {{SSL_MODE}} is {mode}"
                if mode != "DISABLED":
                    stricter = "VERIFY_CA" if name == "ssl_ca" else "REQUIRED"
                    text += f", which may not use it: set {stricter} or a stricter one"
                self.fault(name, text)
        in_clear = values["ssl_mode"] == "DISABLED" and not values["unix_socket"]
        if "server_public_key" in values["connect_args"] and not in_clear:
            text = "may not hold server_public_key, which TLS and a socket do not use:"
            text += " leave it out, or set {SSL_MODE} = 'DISABLED'"
            self.fault("connect_args", text)


def _unused(values: Mapping[str, Any]) -> set[str]:
    """Return the files that the mode of TLS does not use."""
    return _WITHOUT_EFFECT.get(str(values.get("ssl_mode")).upper(), set())


def _squeezed(name: str) -> str:
    return re.sub("[._-]", "", name)


def _is_unread(variable: str, mapping: Mapping[str, Any]) -> bool:
    """Tell whether an environment variable is a setting that the mapping lacks."""
    key = variable.removeprefix("FLASK_").partition("__")[0]
    return variable.startswith(f"FLASK_{PREFIX}") and key not in mapping


def _got(value: object, quiet: bool) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    # Text with an @ may be a URL with a password.
    if quiet or not plain or "@" in str(value):
        return f"a value of type {type(value).__name__}"
    return f"{value!r:.60}"


def arguments() -> list[str]:
    """Return the names of the arguments of pymysql.connect."""
    from pymysql.connections import Connection

    return [*inspect.signature(Connection.__init__).parameters][1:]
