"""A temporary MariaDB or MySQL server, which ends with the process that started it.

It runs on Linux and macOS.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql

from .server_binaries import Engine, ServerNotFound, find_engine
from .watchdog import Supervisor

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
INSTALL_SECONDS = 120.0
POLL_SECONDS = 0.002
LOG_LINES = 20
PORT_TAKEN = re.compile(r"Address already in use|Do you already have another")


class ServerFailed(RuntimeError):
    """The server did not start; the message has the end of its log."""


class _PortTaken(ServerFailed):
    """Another process listens on the port."""


class LocalServer:
    """A private server on a free port of 127.0.0.1, with an empty data folder.

    ::

        with LocalServer() as server:
            print(server.url)  # mysql://app:8f3c…@127.0.0.1:45123/test

    Server and folder are removed when this process ends, even by ``kill -9``. A forked
    child may use the server, and cannot end it. The first start of a server version
    keeps a copy of its fresh data folder in the user's cache folder
    (``$XDG_CACHE_HOME`` or ``~/.cache``), which makes later starts faster.

    Other accounts of the machine need the password, and the server gives no access to
    files outside the private folder.

    :param engine: ``"mariadb"`` or ``"mysql"``.
    :param root: a folder with a system that contains the server, to be run under
        ``chroot``, which needs root's rights. For MariaDB, it may have nothing but
        packages of Debian, unpacked by ``dpkg -x``; these need no rights.
    :param options: further arguments for the server, which override those here.
    :param database: created at the first start, unless ``None``.
    :param user: created at the first start, with all privileges.
    :param password: of that user; by default a random one, see :attr:`password`.
    :param root_over_tcp: let all accounts of this machine log in as ``root`` on the
        port, without a password. Otherwise ``root`` needs the Unix socket, which is in
        the private folder.
    :raises ServerNotFound: the server is not installed, and the message tells what to
        install; or this is Windows.
    """

    host = HOST

    def __init__(
        self,
        *,
        engine: str = "mariadb",
        root: str | os.PathLike[str] | None = None,
        options: Sequence[str] = (),
        database: str | None = "test",
        user: str = "app",
        password: str | None = None,
        root_over_tcp: bool = False,
    ) -> None:
        if not HAS_LOCKS:
            raise ServerNotFound(
                "LocalServer needs Linux or macOS: this Python has no module fcntl"
            )
        self._engine = find_engine(engine, root)
        self.options = tuple(options)
        self.database = database
        self.user = user
        #: The user's password.
        self.password = secrets.token_hex(16) if password is None else password
        self.root_over_tcp = root_over_tcp
        self.port = 0
        self.pid = 0
        self._supervisor: Supervisor | None = None

    def __repr__(self) -> str:
        place = f"{self.host}:{self.port}" if self.port else "not started"
        return f"<LocalServer {self._engine.name} {self.version} {place}>"

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def engine(self) -> str:
        """``"mariadb"`` or ``"mysql"``."""
        return self._engine.name

    @property
    def version(self) -> str:
        """The version, such as ``"10.11.19"``; known before the start."""
        return self._engine.version

    @property
    def unix_socket(self) -> str:
        """The path of the server's unix socket."""
        return f"{self.folder}/s"

    @property
    def folder(self) -> str:
        """The private folder: ``data``, ``log`` and the socket."""
        return self._owner().folder

    @property
    def url(self) -> str:
        """The URL of the database, with user and password."""
        return self.url_at(self.port)

    @property
    def log(self) -> str:
        """The server's output since its last start."""
        return Path(self.folder, "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the process exists; it may be paused."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def url_at(self, port: int) -> str:
        """Return the URL for another port, such as a proxy's."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"mysql://{login}@{self.host}:{port}/{quote(self.database or '')}"

    def connect(self, **options: Any) -> pymysql.Connection[Any]:
        """Connect as root, with autocommit, to inspect the server.

        The connection uses the Unix socket unless ``host`` or ``port`` is given, which
        needs ``root_over_tcp`` or another ``user``. Other options are those of
        :func:`pymysql.connect`.
        """
        settings: dict[str, Any] = {"user": "root", "autocommit": True}
        if options.keys() & {"host", "port"}:
            if not self.root_over_tcp and "user" not in options:
                raise ValueError(
                    "root can use the unix socket only, or with"
                    " LocalServer(root_over_tcp=True) the port, without a password"
                )
            settings |= {"host": self.host, "port": self.port}
        else:
            settings |= {"unix_socket": self.unix_socket, "ssl_disabled": True}
        return pymysql.connect(**settings | options)

    def start(self) -> None:
        """Start the server, and return when it accepts connections.

        Does nothing if it runs. After :meth:`stop` or :meth:`kill` it keeps port and
        data.

        :raises ServerFailed: it did not start.
        """
        if self.running:
            return
        if self._supervisor is not None:
            self._serve()
            return
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Shut the server down in an orderly way, resuming it first."""
        if not self.running:
            return
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._owner().signal(number)
        if not _until(lambda: not self.running, STOP_SECONDS):
            self.kill()

    def kill(self) -> None:
        """Kill the server with SIGKILL; committed data survive."""
        if self._supervisor is not None:
            self._supervisor.signal(signal.SIGKILL)
            _until(lambda: not self.running, STOP_SECONDS)

    def restart(self, options: Sequence[str] | None = None) -> None:
        """Stop the server if it runs, and start it with the same port and data.

        :param options: replace the earlier ``options``, unless ``None``.
        """
        self.stop()
        if options is not None:
            self.options = tuple(options)
        self.start()

    def pause(self) -> None:
        """Suspend the process: the server hangs, and its sockets stay open."""
        self._owner().signal(signal.SIGSTOP)
        _until(lambda: _is_stopped(self.pid), 10)

    def resume(self) -> None:
        """Resume the process after :meth:`pause`."""
        self._owner().signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and remove its folder; :meth:`start` creates a new one."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = None

    def _owner(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the server has not been started")
        return self._supervisor

    def _create(self) -> None:
        supervisor = Supervisor(self._engine.base())
        self._supervisor = supervisor
        weakref.finalize(self, supervisor.close)
        for name in ("files", "plugin"):
            Path(supervisor.folder, name).mkdir(mode=0o700)
        _install(self._engine, supervisor)
        first = Path(supervisor.folder, "first.sql")
        first.write_text("".join(f"{line};\n" for line in self._first_statements()))
        self._serve()
        first.unlink()

    def _first_statements(self) -> Iterator[str]:
        """Yield the statements to run before the first connection."""
        # So that a backslash escapes, whatever SQL mode the options set.
        yield "SET SESSION sql_mode = ''"
        yield from self._engine.tidy
        if self.database:
            name = self.database.replace("`", "``")
            yield f"CREATE DATABASE IF NOT EXISTS `{name}`"
        accounts = [(self.user, host, self.password) for host in ("%", "localhost")]
        if self.root_over_tcp:
            # With skip-name-resolve root@localhost is the unix socket only.
            accounts.append(("root", HOST, ""))
        for user, host, password in accounts:
            account = f"{_quoted(user)}@{_quoted(host)}"
            secret = _quoted(password)
            yield f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {secret}"
            yield f"GRANT ALL ON *.* TO {account} WITH GRANT OPTION"

    def _serve(self) -> None:
        """Serve on a free port at the first start, and later on the same one."""
        is_first = Path(self.folder, "first.sql").exists()
        deadline = time.monotonic() + START_SECONDS
        while True:
            if is_first:
                self.port = _free_port()
            try:
                return self._serve_on_port(is_first)
            except _PortTaken:
                # A client's outgoing connection may sit on the port for a moment.
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _serve_on_port(self, is_first: bool) -> None:
        begin = [self._engine.run_first(self.folder)] if is_first else []
        options = [*begin, *self.options]
        command = self._engine.serve(self.folder, self.port, options)
        # A socket that was left by kill -9 would look like the new server's.
        Path(self.unix_socket).unlink(missing_ok=True)
        self.pid = self._owner().start(command)
        done = _until(lambda: self._accepts() or not self.running, START_SECONDS)
        # No second check: a cluster node may refuse connections again.
        if done and self.running:
            return
        kind = _PortTaken if PORT_TAKEN.search(self.log) else ServerFailed
        self.kill()
        raise kind(_failure(self._engine, self.log))

    def _accepts(self) -> bool:
        # The Unix socket, because another server may listen on the port; opened here,
        # because PyMySQL does not close it on failure.
        with socket.socket(socket.AF_UNIX) as own:
            own.settimeout(START_SECONDS)
            try:
                own.connect(self.unix_socket)
                probe = self.connect(defer_connect=True, read_timeout=START_SECONDS)
                probe.connect(own)
                probe.close()
            except (OSError, pymysql.err.OperationalError):
                return False
        return True


def _install(engine: Engine, supervisor: Supervisor) -> None:
    """Fill the data folder, from the cache if there is one."""
    cached = engine.cache()
    try:
        cached.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(f"{cached}.lock", "w")
    except OSError:
        return _run_installer(engine, supervisor)
    data = Path(supervisor.folder, "data")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cached.is_dir():
            _run_installer(engine, supervisor)
            return _publish(data, cached)
    shutil.copytree(cached, data)


def _failure(engine: Engine, log: str) -> str:
    tail = "\n".join(log.splitlines()[-LOG_LINES:])
    return f"{engine.program} did not start; the end of its log:\n{tail}"


def _run_installer(engine: Engine, supervisor: Supervisor) -> None:
    supervisor.start(engine.install(supervisor.folder))
    _until(lambda: supervisor.poll() is not None, INSTALL_SECONDS)
    if supervisor.poll() != 0:
        raise ServerFailed(
            _failure(engine, Path(supervisor.folder, "log").read_text(errors="replace"))
        )


def _publish(data: Path, cached: Path) -> None:
    """Put a copy into the cache, by an atomic rename."""
    draft = Path(f"{cached}.new")
    shutil.rmtree(draft, ignore_errors=True)
    with suppress(OSError):
        shutil.copytree(data, draft)
        # Each server creates its own identity, which copies must not share.
        (draft / "auto.cnf").unlink(missing_ok=True)
        draft.rename(cached)


def _is_stopped(pid: int | None) -> bool:
    """Tell whether all threads have stopped, which takes a while after the signal."""
    threads = glob(f"/proc/{pid}/task/*/stat")
    states = {Path(thread).read_text().rpartition(") ")[2][0] for thread in threads}
    return states <= {"T"}


def _quoted(text: str) -> str:
    return f"'{pymysql.converters.escape_string(text)}'"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
