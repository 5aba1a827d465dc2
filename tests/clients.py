"""The servers' own programs: the client, and what dumps a database."""

from __future__ import annotations

import os
import shutil
import subprocess
from glob import glob
from pathlib import Path

import pytest
from conftest import MYSQL_ROOT

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


def folder_of(kind: str, folder: Path) -> Path:
    """Make a folder with nothing but this client, ``mariadb`` or ``mysql``.

    Without one, the test is skipped.
    """
    folder.mkdir(exist_ok=True)
    program = folder / kind
    if kind == "mysql" and MYSQL_ROOT:
        _unpacked(program, MYSQL_ROOT)
    elif found := shutil.which(kind):
        program.symlink_to(found)
    else:
        pytest.skip(f"there is no client {kind}")
    said = subprocess.run([program, "--version"], capture_output=True, text=True)
    if said.returncode or ("MariaDB" in said.stdout) != (kind == "mariadb"):
        pytest.skip(f"{kind} is not the client of that server, or does not run")
    return folder


def _unpacked(program: Path, root: str) -> None:
    """Start a client of a folder with another system by that system's own loader."""
    [loader, *_] = [*glob(f"{root}/lib64/ld-linux-*.so.*"), ""]
    libraries = ":".join(
        glob(f"{root}/lib/*-linux-*") + glob(f"{root}/usr/lib/*-linux-*")
    )
    command = f"'{loader}' --library-path '{libraries}' '{root}/usr/bin/mysql'"
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
