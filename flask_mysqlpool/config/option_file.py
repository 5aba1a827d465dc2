"""Reads option files, such as ``~/.my.cnf``, as ``pymysql.connect`` does."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from .validators import Invalid

#: The options that PyMySQL reads, and ``ssl-mode``, which it ignores, by our names.
OPTIONS = {
    "user": "user",
    "password": "password",
    "host": "host",
    "port": "port",
    "socket": "unix_socket",
    "database": "database",
    "default-character-set": "charset",
    "ssl-ca": "ssl_ca",
    "ssl-cert": "ssl_cert",
    "ssl-key": "ssl_key",
    "ssl-mode": "ssl_mode",
    "bind-address": "bind_address",
}
FROM_FILE = {*OPTIONS.values()}
_NOT_TAKEN = (
    *("ssl-capath", "ssl-cipher", "ssl-password", "ssl-passphrase", "ssl-crl"),
    *("ssl-crlpath", "ssl-fp", "ssl-fplist", "tls-version", "tls-ciphersuites"),
    "server-public-key-path",
)
#: Options of MariaDB's clients instead of ``ssl-mode``, without a value or with one.
_FLAGS = {"ssl-verify-server-cert": "VERIFY_IDENTITY", "ssl": "REQUIRED"}


def names_a_file(arguments: Any) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether these arguments of ``pymysql.connect`` name an option file."""
    return isinstance(arguments, Mapping) and bool(
        arguments.get("read_default_file") or arguments.get("read_default_group")
    )


def read(path: object, group: object) -> dict[str, str]:
    """Return the options of one group of a file, by their names in the file.

    Raises :exc:`Invalid`, which quotes nothing of the file, if it cannot be read.
    """
    from pymysql.optionfile import Parser

    if not path:
        path = "c:\\my.ini" if sys.platform.startswith("win") else "/etc/my.cnf"
    group = group or "client"
    if not isinstance(path, str | os.PathLike) or not isinstance(group, str):
        raise Invalid("must have text for read_default_file and read_default_group")
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
    found: dict[str, str] = {}
    for option in (*OPTIONS, *_NOT_TAKEN):
        try:
            value = parser.get(group, option)
        except Exception:  # no group, no such option, or one without a value
            continue
        if value and option in _NOT_TAKEN:
            raise Invalid(f"names a read_default_file with {option}: leave it out")
        if value:
            found[option] = value
    # The parser's get() ignores options without a value.
    given = dict(parser.items(group)) if parser.has_section(group) else {}
    for flag, mode in _FLAGS.items():
        is_on = str(given.get(flag, 0)).lower() not in ("0", "off", "false")
        if is_on and not found.keys() & {"ssl-mode", "ssl-ca"}:
            found["ssl-mode"] = mode
    return found
