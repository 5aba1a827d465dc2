"""The server programs: their paths and command lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

COMMON = (
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=8M",
    # Not 0: what was committed must survive the kill -9 of a test.
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--innodb-use-native-aio=0",
    "--innodb-fast-shutdown=2",
)
MARIADB = ("--skip-log-bin", "--innodb-log-file-size=4M")
MYSQL = ("--disable-log-bin", "--mysqlx=OFF", "--innodb-redo-log-capacity=32M")
# Drops all accounts of a fresh installation but those of the Unix socket: MariaDB's
# root@127.0.0.1 needs no password.
MARIADB_TIDY = (
    "DELETE FROM mysql.global_priv WHERE Host <> 'localhost' OR User = ''",
    "FLUSH PRIVILEGES",
)
# Where servers are installed; often not in the PATH of a user.
SBIN = "/usr/sbin"
# A socket's path has at most 103 bytes on macOS; the private folder takes 20.
LONGEST_BASE = 80


class ServerNotFound(RuntimeError):
    """The server program was not found; the message tells what to install."""


@dataclass(frozen=True)
class Engine:
    """A server program; its paths are relative to ``root``."""

    name: str
    program: str
    version: str
    options: tuple[str, ...]
    tidy: tuple[str, ...] = ()
    installer: str | None = None
    root: str = ""

    def base(self) -> str:
        """Return the folder in which private folders are created."""
        folder = self.root + "/tmp" if self.root else gettempdir()
        return folder if self.root or len(folder) <= LONGEST_BASE else "/tmp"

    def cache(self) -> Path:
        """Return the path of the cached data folder of a fresh installation."""
        if self.root:
            parent = self.root + "/var/cache"
        else:
            parent = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(parent, "flask_mysqlpool", f"{self.name}-{self.version}")

    def install(self, folder: str) -> list[str]:
        """Return the command that fills a data folder; root has no password."""
        head = [self.installer] if self.installer else [self.program]
        if self.installer:
            tail = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        else:
            tail = ["--initialize-insecure"]
        # MySQL cannot read a fresh folder after a faster shutdown.
        return self._command(head, folder, "--innodb-fast-shutdown=1", *tail)

    def serve(self, folder: str, port: int, options: Sequence[str]) -> list[str]:
        """Return the command that starts the server.

        The privilege FILE is confined to the folder, and there are no plugins to
        install.
        """
        inside = self._inside(folder)
        places = [f"--port={port}", f"--socket={inside}/s", f"--pid-file={inside}/pid"]
        bounds = [f"--secure-file-priv={inside}/files", f"--plugin-dir={inside}/plugin"]
        return self._command([self.program], folder, *places, *bounds, *options)

    def run_first(self, folder: str) -> str:
        """Return the option that runs ``first.sql`` before connections are accepted."""
        return f"--init-file={self._inside(folder)}/first.sql"

    def _command(self, head: list[str], folder: str, *tail: str) -> list[str]:
        inside = self._inside(folder)
        places = [f"--datadir={inside}/data", f"--tmpdir={inside}"]
        user = ["--user=root"] if os.geteuid() == 0 else []
        own = [*places, *user, *COMMON, *self.options]
        return [*_chroot(self.root), *head, "--no-defaults", *own, *tail]

    def _inside(self, path: str) -> str:
        return path.removeprefix(self.root)


def find_engine(name: str, root: str | os.PathLike[str] | None = None) -> Engine:
    """Find MariaDB or MySQL on this machine, or in a ``chroot`` folder.

    Raises :exc:`ServerNotFound` if there is none.
    """
    if name == "mariadb" and root is None:
        return _find_mariadb()
    if name == "mysql":
        return _find_mysql("" if root is None else os.path.abspath(root))
    raise ValueError(f"engine must be 'mariadb' or 'mysql' (with a root), not {name!r}")


def _find_mariadb() -> Engine:
    for program, version in _programs("mariadbd", "mysqld"):
        installer = next(_which("mariadb-install-db", "mysql_install_db"), None)
        if "MariaDB" in version and installer:
            number = _number(version)
            own = MARIADB, MARIADB_TIDY, installer
            return Engine("mariadb", program, number, *own)
    raise ServerNotFound(
        "no MariaDB server: looked for mariadbd and mariadb-install-db in PATH and"
        f" {SBIN}. Install one with 'apt-get install mariadb-server-core"
        " mariadb-client-core' (Debian or Ubuntu; starts no system service) or"
        " 'brew install mariadb' (macOS)"
    )


def _find_mysql(root: str) -> Engine:
    for program, version in _programs("mysqld", root=root):
        if "MariaDB" not in version:
            return Engine("mysql", program, _number(version), MYSQL, root=root)
    place = f"{root}{SBIN}" if root else f"PATH and {SBIN}"
    raise ServerNotFound(
        f"no MySQL server: looked for mysqld in {place}. Install one; or, in a clone"
        " of this project, 'scripts/mysql-server' puts one into a folder of its own,"
        " to be given as root="
    )


def _programs(*names: str, root: str = "") -> Iterator[tuple[str, str]]:
    """Yield the programs of these names, with the output of ``--version``."""
    if root and os.geteuid() != 0:
        raise ServerNotFound(f"the MySQL server in {root} needs chroot: run as root")
    for program in _which(*names, root=root):
        run = subprocess.run(
            [*_chroot(root), program, "--no-defaults", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if run.returncode == 0:
            yield program, run.stdout


def _which(*names: str, root: str = "") -> Iterator[str]:
    path = "" if root else os.environ.get("PATH", os.defpath) + os.pathsep
    for name in names:
        found = shutil.which(name, path=f"{path}{root}{SBIN}")
        if found:
            yield found.removeprefix(root)


def _chroot(root: str) -> list[str]:
    return [next(_which("chroot"), "chroot"), root] if root else []


def _number(version: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+", version)
    return found.group() if found else "unknown"
