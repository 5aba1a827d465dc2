"""Tell what many workers of a site cost while nothing happens.

    python benchmarks/at_rest.py --workers 200

Printed are the CPU time that all of them take, in percent of one core, and how long
``status`` and ``pause --wait`` take, in a process that has imported Flask already. Each
worker has used its pool once, under a limit for the host (``MAX_HOST_CONNECTIONS``).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from flask_mysqlpool.testing import LocalServer

SITE = """
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("rest")
app.config.from_prefixed_env("REST")
db = MySQLPool(app)
"""
TICKS = os.sysconf("SC_CLK_TCK")


def work(told: int) -> None:
    """Be a worker: use the pool once, say so, and rest."""
    logging.disable()
    site = importlib.import_module("rest")
    with site.app.app_context(), site.db.connection() as connection:
        connection.ping()
    os.write(told, b".")
    signal.pause()


def seconds_of(pids: list[int]) -> float:
    """Return the CPU time of these processes so far."""
    texts = [Path(f"/proc/{pid}/stat").read_text() for pid in pids]
    fields = [text.rpartition(")")[2].split() for text in texts]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS


def timed(*arguments: str) -> str:
    app = importlib.import_module("rest").app
    started = time.monotonic()
    ended = app.test_cli_runner().invoke(args=["mysqlpool", *arguments])
    seconds = time.monotonic() - started
    return f"{' '.join(arguments)}: exit code {ended.exit_code}, {seconds:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    most = f"--max-connections={options.workers + 50}"
    with tempfile.TemporaryDirectory() as name, LocalServer(options=[most]) as server:
        Path(name, "rest.py").write_text(SITE)
        sys.path.insert(0, name)
        os.environ |= {
            "REST_MYSQLPOOL_URL": server.url,
            "REST_MYSQLPOOL_STATUS_DIR": f"{name}/workers",
            "REST_MYSQLPOOL_MAX_HOST_CONNECTIONS": str(options.workers + 10),
        }
        ready, told = os.pipe()
        pids = []
        for _ in range(options.workers):
            pid = os.fork()
            if not pid:
                work(told)
            pids.append(pid)
        try:
            for _ in pids:
                os.read(ready, 1)
            time.sleep(3)  # until all have published that they rest
            before, started = seconds_of(pids), time.monotonic()
            time.sleep(options.seconds)
            spent = (seconds_of(pids) - before) / (time.monotonic() - started)
            print(f"{options.workers} workers at rest: {spent:.1%} of a core")
            timed("--help")  # imports what is missing
            for arguments in (("status",), ("pause", "--wait", "20"), ("resume",)):
                print(timed(*arguments))
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
