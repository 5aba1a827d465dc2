"""The servers' own programs: the client, and what dumps a database."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.testing.server_binaries import Engine

#: The programs of MySQL, and what MariaDB calls them.
NAMES = {"mysql": "mariadb", "mysqldump": "mariadb-dump"}


def client(
    server: LocalServer, program: str, *arguments: str, given: bytes = b""
) -> bytes | None:
    """Run a program as root, and return what it prints; None if it fails.

    Skip without the program.
    """
    engine: Engine = server._engine
    name = NAMES[program] if engine.name == "mariadb" else program
    place = f"{engine.root}/usr/bin" if engine.root else os.environ["PATH"]
    found = shutil.which(name, path=place)
    if found is None:
        pytest.skip(f"{name} is not installed; Debian's mariadb-client has it")
    ended = subprocess.run(
        [
            *(*engine.prefix, found.removeprefix(engine.root), "--no-defaults"),
            *("-uroot", f"--socket={server.unix_socket.removeprefix(engine.root)}"),
            *arguments,
        ],
        input=given,
        capture_output=True,
    )
    return None if ended.returncode else ended.stdout
