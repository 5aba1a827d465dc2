"""``flask mysqlpool shell``: the server's own client, with the app's settings."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from ..config import PoolConfig
from ..workers.mysql_server import Login, Unanswered, connect_to
from .check import no_connection
from .commands import bind_option, find_site, group

NO_CLIENT = (
    "neither 'mariadb' nor 'mysql' is in the PATH: install a client, such as by"
    " 'apt install mariadb-client' (Debian, Ubuntu), 'apk add mariadb-client' (Alpine)"
    " or 'brew install mariadb' (macOS)"
)

#: Bytes of a line that both clients read whole.
LONGEST = 4000

#: What a value contains, and what both clients read as that between double quotes.
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}


@group.command()
@bind_option
def shell(bind: str | None) -> None:
    """Open the server's own client, mariadb or mysql, with the settings of a pool.

    It reads statements from the terminal or from a pipe. The exit code is the client's.
    """
    pools = find_site(bind).pools
    name = "default" if bind is None and "default" in pools else bind
    if name is None and len(pools) > 1:
        known = ", ".join(map(repr, pools))
        raise click.UsageError(f"choose a pool by --bind: {known}")
    config = pools[name] if name else next(iter(pools.values()))
    for setting in "CONNECT", "SSL_CONTEXT":
        if getattr(config, setting.lower()) is not None:
            raise click.ClickException(
                f"{setting} is Python, which the server's client cannot use: start the"
                " client yourself, with settings of its own"
            )
    if not any(map(shutil.which, ("mariadb", "mysql"))):
        raise click.ClickException(NO_CLIENT)
    try:
        with connect_to(config) as server:
            login = server.login()
    except Unanswered as error:
        raise click.ClickException(no_connection(error).advice) from None
    program, is_mariadb = _client(login.is_mariadb)
    _replace_process(program, option_file(config, login, is_mariadb))


def _client(for_mariadb: bool) -> tuple[str, bool]:
    """Return the client to use, and whether it is MariaDB's, whatever its name is."""
    names = ("mariadb", "mysql") if for_mariadb else ("mysql", "mariadb")
    program = next(filter(None, map(shutil.which, names)))
    asked = [program, "--no-defaults", "--version"]
    said = subprocess.run(asked, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return program, b"MariaDB" in said


def option_file(config: PoolConfig, login: Login, is_mariadb: bool) -> bytes:
    """Return an option file by which the client logs in as the pool does."""
    options = dict(_options(config, login))
    options |= dict((_tls_of_mariadb if is_mariadb else _tls_of_mysql)(config, login))
    lines = [b"[client]", *(_line(name, value) for name, value in options.items())]
    return b"\n".join([*lines, b""])


def _options(config: PoolConfig, login: Login) -> Iterator[tuple[str, str]]:
    # By the name 'localhost', the clients mean the Unix socket unless told otherwise.
    if config.unix_socket:
        yield from (("protocol", "socket"), ("socket", config.unix_socket))
    else:
        yield from (("protocol", "tcp"), ("port", str(login.port)))
        yield "host", login.host
    yield "user", config.account or ""
    # An empty one, too, or the client would take it from its environment.
    yield "password", login.password.decode("utf-8", "surrogateescape")
    if config.database is not None:
        yield "database", config.database
    yield "default-character-set", config.charset


def _tls_of_mysql(config: PoolConfig, login: Login) -> Iterator[tuple[str, str]]:
    if not login.is_encrypted:
        yield "ssl-mode", "DISABLED"
        return
    verifies = config.ssl_mode in ("VERIFY_CA", "VERIFY_IDENTITY")
    yield "ssl-mode", config.ssl_mode if verifies else "REQUIRED"
    yield from _certificates(config, verifies)
    if verifies or config.cleartext_plugin:
        yield "enable-cleartext-plugin", "1"


def _tls_of_mariadb(config: PoolConfig, login: Login) -> Iterator[tuple[str, str]]:
    if not login.is_encrypted:
        yield "ssl", "0"
        return
    verifies = config.ssl_mode in ("VERIFY_CA", "VERIFY_IDENTITY")
    yield "ssl", "1"
    # It verifies the host's name, too, or nothing; since 11.4, it does by default.
    yield "ssl-verify-server-cert", str(int(verifies))
    yield from _certificates(config, verifies)


def _certificates(config: PoolConfig, verifies: bool) -> Iterator[tuple[str, str]]:
    system = ssl.get_default_verify_paths()
    if config.ssl_ca is not None:
        yield "ssl-ca", os.path.abspath(config.ssl_ca)
    elif verifies and system.cafile:
        yield "ssl-ca", system.cafile
    elif verifies and system.capath:
        yield "ssl-capath", system.capath
    if config.ssl_cert is not None:
        yield "ssl-cert", os.path.abspath(config.ssl_cert)
        yield "ssl-key", os.path.abspath(config.ssl_key or config.ssl_cert)


def _line(name: str, value: str) -> bytes:
    escaped = "".join(_ESCAPED.get(character, character) for character in value)
    line = f'{name}="{escaped}"'.encode("utf-8", "surrogateescape")
    if len(line) > LONGEST or b"\0" in line:
        raise click.ClickException(
            f"the {name} cannot be in the option file of a client: it has a zero"
            f" character, or more than {LONGEST - len(name) - 3} bytes"
        )
    return line


def _replace_process(program: str, options: bytes) -> NoReturn:
    """Become the client, which reads its options from a pipe.

    So no other process can read them, nothing is left to remove, and signals, exit code
    and the terminal are the client's own.
    """
    reader, writer = os.pipe()
    os.write(writer, options)
    os.close(writer)
    os.set_inheritable(reader, True)
    # MySQL's client would read the user's login file even so, and prefer it.
    os.environ["MYSQL_TEST_LOGIN_FILE"] = f"{os.devnull}/none"
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
    sys.stdout.flush()
    os.execv(program, [program, f"--defaults-file=/dev/fd/{reader}"])
