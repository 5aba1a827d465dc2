"""Keep a site busy while it is paused, reset, reloaded and its database restarted.

    python benchmarks/soak.py --seconds 300
    python benchmarks/soak.py --seconds 300 --max-requests 200 --only pause

Printed are the requests and how many failed, what each command did how often, with
which exit codes and how long it took, and what has grown. Ends with 1 if a request
failed, if ``pause --wait`` or ``reset --wait`` was not done in time, or if files or
connections are left over.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from flask_mysqlpool.testing import LocalServer

SITE = """
from flask import Flask, request
from flask_mysqlpool import MySQLPool, get_db

app = Flask("soak")
app.config.from_prefixed_env("SOAK")
db = MySQLPool(app)

@app.get("/<int:value>")
def echo(value):
    with get_db().cursor() as cursor:
        cursor.execute("SELECT %s, SLEEP(0.002)", (value,))
        return str(cursor.fetchone()[0])
"""
#: Requests at once, workers, and threads of each.
CLIENTS, WORKERS, THREADS = 8, 3, 4
#: Seconds that a command waits for the workers.
WAIT = "20"


class Load:
    """Threads that make requests, and count what they are answered."""

    def __init__(self, port: int) -> None:
        self.answers: Counter[str] = Counter()
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            answer = self.ask(random.randrange(1 << 30))
            with self._lock:
                self.answers[answer] += 1

    def ask(self, value: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", f"/{value}", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read().decode()
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()
        if response.status != 200:
            return str(response.status)
        return "ok" if body == str(value) else "foreign"


class Site:
    """The site under gunicorn, and its commands."""

    def __init__(self, folder: Path, url: str, max_requests: int) -> None:
        (folder / "soaked.py").write_text(SITE)
        self.status_dir = folder / "workers"
        self.environment = os.environ | {
            "SOAK_MYSQLPOOL_URL": url,
            "SOAK_MYSQLPOOL_STATUS_DIR": str(self.status_dir),
            "SOAK_MYSQLPOOL_MAX_SIZE": "3",
            "SOAK_MYSQLPOOL_TIMEOUT": "50",
            "PYTHONPATH": str(folder),
            "FLASK_APP": "soaked",
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        options = f"--workers={WORKERS} --threads={THREADS} --worker-class=gthread"
        options += f" --bind=127.0.0.1:{self.port} --max-requests={max_requests}"
        options += " --max-requests-jitter=50 --graceful-timeout=50 --log-level=error"
        command = [sys.executable, "-m", "gunicorn", *options.split(), "soaked:app"]
        with (folder / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                command, env=self.environment, stderr=errors
            )
        self.codes: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flask", "mysqlpool", *arguments]
        started = time.monotonic()
        ended = subprocess.run(
            command, env=self.environment, capture_output=True, text=True
        )
        self.seconds.setdefault(arguments[0], []).append(time.monotonic() - started)
        self.codes[arguments[0], ended.returncode] += 1

    def memory(self) -> int:
        """KiB that all processes of the site have of their own."""
        parent, lines = str(self.process.pid), list[list[str]]()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if path.read_text().rpartition(")")[2].split()[1] == parent:
                    text = path.with_name("smaps_rollup").read_text()
                    lines += map(str.split, text.splitlines())
        return sum(int(line[1]) for line in lines if line[0] == "Private_Dirty:")


def disturb(site: Site, server: LocalServer, only: str | None) -> None:
    """Do one thing that an operator does."""
    what = only or random.choice(("pause", "restart", "reset", "reload"))
    if what in ("pause", "restart"):
        site.run("pause", "--wait", WAIT)
        if what == "restart":
            server.stop()
            server.start()
        site.run("resume")
    elif what == "reset":
        site.run("reset", "--yes", "--wait", WAIT)
    else:
        site.process.send_signal(signal.SIGHUP)
        site.codes["reload", 0] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--max-requests", type=int, default=0)
    parser.add_argument("--only", choices=("pause", "restart", "reset", "reload"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, LocalServer() as server:
        site = Site(Path(name), server.url, options.max_requests)
        load = Load(site.port)
        try:
            while load.ask(1) != "ok":
                time.sleep(0.1)
            memory = []
            with load.running():
                end = time.monotonic() + options.seconds
                while time.monotonic() < end:
                    disturb(site, server, options.only)
                    memory.append(site.memory())
            site.run("status")
        finally:
            site.process.terminate()
            site.process.wait()
        left = sorted(path.name for path in site.status_dir.glob("*.worker"))
    failed = load.answers.total() - load.answers["ok"]
    # 3: all workers had just been replaced, so there was none to report.
    undone = any(code not in (0, 3) for what, code in site.codes if what != "status")
    print(f"{load.answers.total()} requests, {failed} failed: {dict(load.answers)}")
    for (what, code), times in sorted(site.codes.items()):
        took = site.seconds.get(what)
        about = f", {median(took):.2f} s, at most {max(took):.2f}" if took else ""
        print(f"{what}: exit code {code} {times} times{about}")
    print(f"memory of the workers: {memory[0]} KiB at first, {memory[-1]} at the end")
    print(f"files of workers left: {left}")
    raise SystemExit(1 if failed or undone or left else 0)


if __name__ == "__main__":
    main()
