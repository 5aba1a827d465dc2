"""The server programs: their paths and command lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from tempfile import gettempdir

COMMON = (
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=8M",
    # Not 0: what was committed must survive the kill -9 of a test. It need not survive
    # a power failure, so nothing waits for the disk.
    "--innodb-flush-log-at-trx-commit=2",
    "--loose-innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
    "--innodb-use-native-aio=0",
    "--innodb-fast-shutdown=2",
)
MARIADB: tuple[str, ...] = ("--skip-log-bin", "--innodb-log-file-size=4M")
MYSQL = ("--disable-log-bin", "--mysqlx=OFF", "--innodb-redo-log-capacity=32M")
# Drops all accounts of a fresh installation but those of the Unix socket: MariaDB's
# root@127.0.0.1 needs no password.
MARIADB_TIDY = (
    "DELETE FROM mysql.global_priv WHERE Host <> 'localhost' OR User = ''",
    "FLUSH PRIVILEGES",
)
# Where servers are installed, often not in the PATH of a user; and their tools.
SBIN, BIN = "/usr/sbin", "/usr/bin"
# A socket's path has at most 103 bytes on macOS; the private folder takes 20.
LONGEST_BASE = 80


class ServerNotFound(RuntimeError):
    """The server program was not found; the message tells what to install."""


@dataclass(frozen=True)
class Engine:
    """A server program.

    ``root`` is its ``chroot`` folder, to which its paths are relative, or empty.
    ``prefix`` is the beginning of each command.
    """

    name: str
    program: str
    version: str
    options: tuple[str, ...]
    tidy: tuple[str, ...] = ()
    installer: str | None = None
    root: str = ""
    prefix: tuple[str, ...] = ()

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
            # By force: it would insist on resolving a host name that is not used.
            tail = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            tail.append("--force")
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
        return [*self.prefix, *head, "--no-defaults", *own, *tail]

    def _inside(self, path: str) -> str:
        return path.removeprefix(self.root)


def find_engine(name: str, root: str | os.PathLike[str] | None = None) -> Engine:
    """Find MariaDB or MySQL on this machine, or in a folder.

    Raises :exc:`ServerNotFound` if there is none.
    """
    if name not in ("mariadb", "mysql"):
        raise ValueError(f"engine must be 'mariadb' or 'mysql', not {name!r}")
    folder = "" if root is None else os.path.abspath(root)
    return _find_mariadb(folder) if name == "mariadb" else _find_mysql(folder)


def _find_mariadb(folder: str) -> Engine:
    root, prefix, options = folder, tuple[str, ...](), MARIADB
    if folder and not os.path.exists(f"{folder}/bin/sh"):
        # Unpacked packages, which use the shell and the C library of this system.
        root, options = "", (f"--basedir={folder}/usr", *MARIADB)
        prefix = "env", f"LD_LIBRARY_PATH={_libraries(folder)}"
    elif folder:
        prefix = _chroot(folder)
    found = _which("mariadb-install-db", "mysql_install_db", folder=folder)
    installer = next(found, "").removeprefix(root)
    failures = list[str]()
    for program in _which("mariadbd", "mysqld", folder=folder):
        inside = program.removeprefix(root)
        version = _version([*prefix, inside], failures)
        if "MariaDB" in version and installer:
            own = _number(version), options, MARIADB_TIDY, installer
            return Engine("mariadb", inside, *own, root, prefix)
    raise ServerNotFound(
        "no MariaDB server: looked for mariadbd and mariadb-install-db in"
        f" {_places(folder)}. Install one with 'apt-get install mariadb-server-core"
        " mariadb-client-core' (Debian or Ubuntu; starts no system service) or"
        " 'brew install mariadb' (macOS)" + "".join(failures)
    )


def _find_mysql(root: str) -> Engine:
    prefix = _chroot(root) if root else ()
    failures = list[str]()
    for program in _which("mysqld", folder=root):
        inside = program.removeprefix(root)
        version = _version([*prefix, inside], failures)
        if version and "MariaDB" not in version:
            own = _number(version), MYSQL
            return Engine("mysql", inside, *own, root=root, prefix=prefix)
    raise ServerNotFound(
        f"no MySQL server: looked for mysqld in {_places(root)}. Install one; or, in a"
        " clone of this project, 'scripts/mysql-server' puts one into a folder of its"
        " own, to be given as root=" + "".join(failures)
    )


def _version(command: list[str], failures: list[str]) -> str:
    """Return what ``--version`` prints; or nothing, and append why to ``failures``."""
    run = subprocess.run(
        [*command, "--no-defaults", "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return run.stdout
    failures.append(f". {command[-1]} does not run: {run.stderr.strip()}")
    return ""


def _which(*names: str, folder: str = "") -> Iterator[str]:
    """Yield the paths of the programs, of those in the folder if one is given."""
    places = [os.environ.get("PATH", os.defpath), SBIN]
    if folder:
        places = [folder + SBIN, folder + BIN]
    for name in names:
        found = shutil.which(name, path=os.pathsep.join(places))
        if found:
            yield found


def _places(folder: str) -> str:
    """Return where :func:`_which` looks, in words."""
    return f"{folder}{SBIN} and {folder}{BIN}" if folder else f"PATH and {SBIN}"


def _libraries(folder: str) -> str:
    """Return the folders of shared libraries in unpacked packages, and the user's."""
    own = [*glob(f"{folder}/usr/lib/*-linux-*"), *glob(f"{folder}/lib/*-linux-*")]
    # An empty entry would be the current folder.
    return os.pathsep.join(filter(None, [*own, os.environ.get("LD_LIBRARY_PATH")]))


def _chroot(root: str) -> tuple[str, ...]:
    if os.geteuid() != 0:
        raise ServerNotFound(f"the server in {root} needs chroot: run as root")
    return next(_which("chroot"), "chroot"), root


def _number(version: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+", version)
    return found.group() if found else "unknown"
