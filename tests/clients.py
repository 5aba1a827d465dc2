"""The clients of the servers, each in a folder that is to be the ``PATH``."""

from __future__ import annotations

import shutil
import subprocess
from glob import glob
from pathlib import Path

import pytest
from conftest import MYSQL_ROOT


def folder_of(kind: str, folder: Path) -> Path:
    """A folder with nothing but this client, ``mariadb`` or ``mysql``.

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
