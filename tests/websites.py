"""Sites under WSGI servers, and the load that they get."""

from __future__ import annotations

import http.client
import importlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import local_server, until

from flask_mysqlpool import PoolConfig
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.status_dir import StatusDir

TESTS = Path(__file__).parent


WORKERS, THREADS = 2, 4


CLIENTS = 8


#: Requests of one load, at the least: each client connects anew in it.
REQUESTS = 240


#: Requests that a client sends over one connection, where the server allows that.
KEPT_ALIVE = 25


#: One request of so many is slow, by so many seconds.
SLOW, PAUSE = 5, 0.01


#: Seconds until what should happen counts as not happening.
PATIENCE = 60.0


#: Seconds that a client waits for an answer.
ANSWER = 30.0


#: Seconds that the database may take to notice that a client is gone.
LEAK = 5.0


@dataclass(frozen=True)
class Kind:
    """A server, and the arguments for Python that start it on a port of its choice."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    #: Whether the app is loaded in the process that is started, and forked from there.
    preloaded: bool = False
    workers: int = WORKERS
    stop: signal.Signals = signal.SIGTERM
    #: Whether it names its port before a worker listens, and nothing waits there.
    refuses_first: bool = False


def gunicorn(
    options: str, *needs: str, preload: bool = False, workers: int = WORKERS
) -> Kind:
    if preload:
        options += " --preload"
    return Kind(
        f"gunicorn {options}",
        (
            *("-m", "gunicorn", "sites:app", "--bind=127.0.0.1:0"),
            *(f"--workers={workers}", f"--threads={THREADS}", "--graceful-timeout=8"),
            *f"--worker-class={options}".split(),
        ),
        ("gunicorn", *needs),
        preloaded=preload,
        workers=workers,
    )


BOARD = gunicorn("gthread", workers=3)


@contextmanager
def good_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """One under gunicorn that does nothing odd, with a database that only it uses."""
    pytest.importorskip("gunicorn")
    monkeypatch.setenv("SITE_IS_GOOD", "yes")
    with local_server("mariadb") as database:
        site = Site(BOARD, database, tmp_path)
        try:
            yield site
        finally:
            site.end()
            # The end of the log is shown if the test has failed.
            print(site.log[-5000:])


@dataclass
class Load:
    """Clients with a thread each, and what they were answered."""

    port: int
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: The processes that answered.
    workers: set[int] = field(default_factory=set)
    #: The processes in which each connection to the database was seen.
    users: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    #: Those that were opened by the import of the app, by process.
    origins: dict[int, set[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """With all clients at work; at the end, let them finish what they began."""
        enough = threading.Event()
        clients = [
            threading.Thread(target=self._client, args=(name, enough), daemon=True)
            for name in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            enough.set()
            for client in clients:
                client.join(PATIENCE)
        assert not any(client.is_alive() for client in clients), "unanswered"

    def run(self, enough: Callable[[], bool]) -> None:
        """At least ``REQUESTS`` more, and until this holds."""
        goal = self.requests + REQUESTS
        with self.running():
            until(lambda: self.requests >= goal and enough(), PATIENCE)

    def _client(self, name: int, enough: threading.Event) -> None:
        http_client = http.client.HTTPConnection("127.0.0.1", self.port, ANSWER)
        for number in itertools.count(1):
            # Of all lengths, so that what is out of step is out of order as well.
            value = f"{name}-{number}-" + "x" * (number * 7 % 300)
            pause = 0 if number % SLOW else PAUSE
            query = urlencode({"value": value, "pause": pause})
            try:
                self._note(value, *_get(http_client, f"/echo?{query}"))
            except (OSError, http.client.HTTPException) as error:
                http_client.close()
                with self._lock:
                    self.requests += 1
                    self.failures.append(repr(error))
            if number % KEPT_ALIVE == 0:
                http_client.close()
            if enough.is_set():
                break
        http_client.close()

    def _note(self, asked: str, status: int, body: bytes) -> None:
        with self._lock:
            self.requests += 1
            if status != 200:
                self.failures.append(f"{status}: {body[:100]!r}")
                return
            answer = json.loads(body)
            if answer["value"] != asked:
                self.wrong.append(f"{answer['value']!r} instead of {asked!r}")
            self.workers.add(answer["pid"])
            self.users[answer["id"]].add(answer["pid"])
            origin = answer["origin"]
            self.origins[origin["pid"]] = set(origin["ids"])
            for number in origin["ids"]:
                self.users[number].add(origin["pid"])

    @property
    def shared(self) -> dict[int, set[int]]:
        """Connections that were seen in more than one process."""
        return {id: pids for id, pids in self.users.items() if len(pids) > 1}


def _get(client: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    """Ask; and again, as clients do, if a server closed the connection it had kept."""
    kept = client.sock is not None
    try:
        client.request("GET", path)
        response = client.getresponse()
    except ConnectionError:  # and http.client.RemoteDisconnected, which is one
        if not kept:
            raise
        client.close()
        client.request("GET", path)
        response = client.getresponse()
    return response.status, response.read()


class Site:
    """A server that was started, and the database that it uses."""

    def __init__(self, kind: Kind, database: LocalServer, folder: Path) -> None:
        self.kind, self.database = kind, database
        self.board = StatusDir(folder / "board")
        self._config = PoolConfig.from_mapping({"URL": database.url})
        self._log = folder / "log"
        arguments = list(kind.arguments)
        if "gunicorn" in kind.needs and _has_control_socket():
            arguments.append("--no-control-socket")
        path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "SITE_URL": database.url,
            "SITE_STATUS_DIR": self.board.path,
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def fleet(self) -> Fleet:
        return Fleet(self.board, "sites", {"default": self._config})

    def port(self) -> int:
        """The port that it says it listens on; connections wait for its workers."""
        pattern = re.compile(r"127\.0\.0\.1:([1-9][0-9]*)")
        until(lambda: pattern.search(self.log) or self._process.poll(), PATIENCE)
        found = pattern.search(self.log)
        assert found, self.log
        port = int(found[1])
        if self.kind.refuses_first:
            until(lambda: _accepts(port), PATIENCE)
        return port

    def connections(self) -> set[int]:
        """The site's connections, as the database sees them."""
        with self.database.connect() as root, root.cursor() as cursor:
            cursor.execute(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s",
                (self.database.user,),
            )
            return {number for (number,) in cursor.fetchall()}

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end, wait until it has; how many connections are left."""
        self.signal(self.kind.stop)
        self._process.wait(PATIENCE)
        with suppress(AssertionError):
            until(lambda: not self.connections(), LEAK)
        return len(self.connections())

    def end(self) -> None:
        """End what is left of it: its session is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _has_control_socket() -> bool:
    """Whether gunicorn is of those that leave a socket in the home folder."""
    return hasattr(importlib.import_module("gunicorn.config"), "ControlSocketDisable")
