"""Reads option files, such as ``~/.my.cnf``, as ``pymysql.connect`` does."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping

from pymysql.optionfile import Parser

from .validators import Invalid

#: The options that PyMySQL reads, and ``ssl-mode``, which it ignores, by our names.
_OPTIONS = {
    "user": "user",
    "password": "password",
    "host": "host",
    "port": "port",
    "unix_socket": "socket",
    "database": "database",
    "charset": "default-character-set",
    "ssl_ca": "ssl-ca",
    "ssl_cert": "ssl-cert",
    "ssl_key": "ssl-key",
    "ssl_mode": "ssl-mode",
    "bind_address": "bind-address",
}
_NOT_TAKEN = (
    *("ssl-capath", "ssl-cipher", "ssl-password", "ssl-passphrase", "ssl-crl"),
    *("ssl-crlpath", "ssl-fp", "ssl-fplist", "tls-version", "tls-ciphersuites"),
    "server-public-key-path",
)
#: Options of MariaDB's clients instead of ``ssl-mode``, without a value or with one.
_FLAGS = {"ssl-verify-server-cert": "VERIFY_IDENTITY", "ssl": "REQUIRED"}


def split(arguments: object) -> tuple[object, dict[str, tuple[str, str]]]:
    """Split arguments of ``pymysql.connect`` into the option file and the others.

    Return the other arguments, and the options by our names, each with its name in the
    file. Raises :exc:`Invalid`, which quotes nothing of a file that cannot be read.
    """
    if not isinstance(arguments, Mapping):
        return arguments, {}
    others = dict(arguments)
    path = others.pop("read_default_file", None)
    group = others.pop("read_default_group", None)
    if not (path or group):
        return arguments, {}
    if not path:
        path = "c:\\my.ini" if sys.platform.startswith("win") else "/etc/my.cnf"
    group = group or "client"
    if not isinstance(path, str | os.PathLike) or not isinstance(group, str):
        raise Invalid("must have text for read_default_file and read_default_group")
    options = _options(_parsed(path), group)
    if "bind_address" in options:
        others.setdefault("bind_address", options.pop("bind_address")[1])
    return others, options


def _parsed(path: str | os.PathLike[str]) -> Parser:
    parser = Parser()
    try:
        with open(os.path.expanduser(path)) as file:
            parser.read_file(file)
    except (OSError, ValueError) as error:
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise Invalid(
            f"names a read_default_file that cannot be read: {kind}"
        ) from None
    except configparser.Error as error:
        kind = type(error).__name__
        raise Invalid(f"names a read_default_file that is malformed: {kind}") from None
    return parser


def _options(parser: Parser, group: str) -> dict[str, tuple[str, str]]:
    # The parser's get() removes quotes, but fails for an option without a value.
    given = dict(parser.items(group)) if parser.has_section(group) else {}
    texts = {option: parser.get(group, option) for option in given if given[option]}
    for option in _NOT_TAKEN:
        if texts.get(option):
            raise Invalid(f"names a read_default_file with {option}: leave it out")
    found = {n: (o, texts[o]) for n, o in _OPTIONS.items() if texts.get(o)}
    for flag, mode in _FLAGS.items():
        is_on = str(given.get(flag, 0)).lower() not in ("0", "off", "false")
        if is_on and not found.keys() & {"ssl_mode", "ssl_ca"}:
            found["ssl_mode"] = (flag, mode)
    return found
