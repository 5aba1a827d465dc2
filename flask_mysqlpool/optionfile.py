"""Reads option files, such as ``~/.my.cnf``, as ``pymysql.connect`` does."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from .convert import Wrong

#: What PyMySQL reads of them, and our names of it.
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
    "bind-address": "bind_address",
}
FROM_FILE = {*OPTIONS.values(), "ssl_mode"}
_NOT_TAKEN = "ssl-capath", "ssl-cipher", "ssl-password"


def names_a_file(arguments: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether these arguments of ``pymysql.connect`` have it read an option file."""
    return isinstance(arguments, Mapping) and bool(
        arguments.get("read_default_file") or arguments.get("read_default_group")
    )


def read(path: object, group: object) -> dict[str, str]:
    """Return the options that one group of a file has, by their names in the file.

    A file that cannot be read raises :exc:`Wrong`, which repeats nothing of it.
    """
    from pymysql.optionfile import Parser

    if not path:
        path = "c:\\my.ini" if sys.platform.startswith("win") else "/etc/my.cnf"
    group = group or "client"
    if not isinstance(path, str | os.PathLike) or not isinstance(group, str):
        raise Wrong("must have text for read_default_file and read_default_group")
    parser = Parser()
    try:
        with open(os.path.expanduser(path)) as file:
            parser.read_file(file)
    except (OSError, ValueError) as error:
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise Wrong(f"names a read_default_file that cannot be read: {kind}") from None
    except configparser.Error as error:
        kind = type(error).__name__
        raise Wrong(f"names a read_default_file that is malformed: {kind}") from None
    found = {}
    for option in (*OPTIONS, *_NOT_TAKEN):
        try:
            value = parser.get(group, option)
        except Exception:  # no group, no such option, or one without a value
            continue
        if value and option in _NOT_TAKEN:
            raise Wrong(f"names a read_default_file with {option}: leave it out")
        if value:
            found[option] = value
    return found
