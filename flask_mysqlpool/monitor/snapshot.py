"""The monitor's data: a snapshot of an app's pools, over all workers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from flask import Flask

from ..config import PoolConfig
from ..pool.driver.process import process
from ..workers.overview import (
    RECENT,
    Overview,
    capacity,
    holders,
    last_failure,
    last_timeout,
    reason,
    totals,
)
from ..workers.status import TIMES, WorkerStatus
from .percentiles import histogram, reasons, summary
from .server_cache import Answer, ServerCache, describe

#: Seconds after which a request queries no further server; the next request does.
BUDGET = 0.4

#: Samples that are kept for the line chart, and minimum seconds between two of them.
KEPT, APART = 300, 0.8

#: Holders that are listed.
LISTED = 50

#: Seconds after which a worker with connections has missed its heartbeat.
SILENT = 2.0

#: The published fields of a worker that the page shows.
_FIELDS = (
    *("id", "name", "pid", "generation", "size", "idle", "in_use", "connecting"),
    *("waiting", "outdated", "paused", "checkouts", "timeouts", "opened", "discarded"),
)

_COLUMNS = "thread_id", "pid", "worker", "endpoint", "for", "age"


def read_site(app: Flask) -> Overview:
    """Read what all workers publish; if that fails, the state of this process."""
    states = app.extensions.get("mysqlpool")
    if not states:
        raise RuntimeError(
            f"the monitor has nothing to show: the app {app.name!r} has no MySQLPool"
        )
    site = Overview(app.name, states.values())
    if site.error:
        site.read_own(states.values())
    return site


class Memory:
    """The state that a process keeps of an app between two requests."""

    def __init__(self) -> None:
        #: A fork may have copied it while another thread held a lock.
        self.process = process()
        self._lock = threading.Lock()
        self._caches: dict[object, ServerCache] = {}
        self._lines: dict[str, deque[tuple[float, int, int]]] = {}

    def server_cache(self, config: PoolConfig) -> ServerCache:
        """Return the cache of a server and account, which binds may share."""
        key = config.server, config.user
        with self._lock:
            if key not in self._caches:
                self._caches[key] = ServerCache(config)
            return self._caches[key]

    def line(
        self, bind: str, counts: Mapping[str, int]
    ) -> list[tuple[float, int, int]]:
        """Add a sample to the line chart, and return all: (time, in use, waiting)."""
        now = time.time()
        with self._lock:
            line = self._lines.setdefault(bind, deque(maxlen=KEPT))
            if not line or abs(now - line[-1][0]) >= APART:
                line.append((round(now, 1), counts["in_use"], counts["waiting"]))
            return list(line)


def status(
    site: Overview, memory: Memory, *, with_server: bool, with_line: bool
) -> dict[str, Any]:
    """Return all data of the page that change."""
    pools = {bind: _pool(site, bind) for bind in site.pools}
    answers = _query(site, memory) if with_server else {}
    for bind, pool in pools.items():
        line = memory.line(bind, pool["totals"])
        if with_line:
            pool["line"] = line
        if bind in answers:
            _add_server(pool, answers[bind])
            if "," not in site.pools[bind].host:
                # With several hosts, thread ids are ambiguous.
                _match(pool, answers[bind], _claimed(site, bind))
    return {
        "app": site.app,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": round(time.time(), 3),
        "problems": _problems(site),
        "pools": pools,
    }


def _problems(site: Overview) -> list[str]:
    if site.error:
        return [f"Only this worker is shown, {os.getpid()}: {reason(site.error)}."]
    desired = {bind: site.desired(bind) for bind in site.pools}
    pauses = [f"{b}: {d.in_words()}" for b, d in desired.items() if d.paused]
    return [*pauses, *site.problems]


def _pool(site: Overview, bind: str) -> dict[str, Any]:
    config, workers = site.pools[bind], site.workers[bind]
    counts = totals(workers)
    held, timeout = holders(workers), last_timeout(workers)
    pool = {
        "server": config.server,
        "max_size": config.max_size,
        "max_host_connections": config.max_host_connections,
        "capacity": capacity(config, len(workers)),
        "paused": site.is_paused(bind),
        "totals": counts,
        "waited": max((worker.waited for worker in workers), default=0.0),
        "workers": [_public(worker) for worker in workers],
        "holders": [{k: h.get(k) for k in _COLUMNS} for h in held[:LISTED]],
        # A worker publishes the details of its first connections only.
        "unlisted": max(counts["in_use"], len(held)) - len(held[:LISTED]),
        **{name: summary(workers, name) for name in TIMES},
        "discarded_by_reason": reasons(workers),
        "last_timeout": timeout and timeout["ago"],
        "connect_failure": last_failure(workers),
    }
    return {"state": _state(pool), **pool}


def _state(pool: Mapping[str, Any]) -> str:
    """Return the most severe state that applies."""
    counts, failure = pool["totals"], pool["connect_failure"]
    if pool["paused"]:
        return "paused"
    if failure is not None and failure["ago"] < RECENT:
        return "failing"
    if counts["waiting"]:
        return "waiting"
    if pool["last_timeout"] is not None and pool["last_timeout"] < RECENT:
        return "timeouts"
    if not counts["workers"]:
        return "unused"
    return "full" if counts["in_use"] >= pool["capacity"] else "ok"


def _public(worker: WorkerStatus) -> dict[str, Any]:
    silence = time.time() - worker.heard
    expected = worker.size or worker.waiting
    return {
        **{name: getattr(worker, name) for name in _FIELDS},
        "silent": round(silence, 1) if expected and silence > SILENT else 0,
        "discarded_by_reason": reasons([worker]),
        **{name: histogram(worker, name) for name in TIMES},
    }


# The server


def _query(site: Overview, memory: Memory) -> dict[str, Answer]:
    deadline = time.monotonic() + BUDGET
    return {
        bind: memory.server_cache(config).answer(may_query=time.monotonic() < deadline)
        for bind, config in site.pools.items()
    }


def _claimed(site: Overview, bind: str) -> set[int]:
    """Return the thread ids that all workers have at this bind's server."""
    place = site.pools[bind].server
    return {
        number
        for other, config in site.pools.items()
        if config.server == place
        for worker in site.workers[other]
        for number in worker.all_thread_ids
    }


def _add_server(pool: dict[str, Any], answer: Answer) -> None:
    if answer.report is None:
        pool["seen_by_server"] = {"error": answer.error}
        return
    pool["seen_by_server"] = {
        "version": answer.report.version,
        "max_connections": answer.report.max_connections,
        "connected": answer.report.connected,
        "threads": len(answer.report.threads),
    }


def _match(pool: dict[str, Any], answer: Answer, claimed: set[int]) -> None:
    """Add to each holder what its connection does, by the server's thread list."""
    if answer.report is None:
        return
    threads = {thread.thread_id: thread for thread in answer.report.threads}
    pool["seen_by_server"]["orphans"] = len(threads.keys() - claimed)
    age = time.monotonic() - answer.queried
    for holder in pool["holders"]:
        thread = threads.get(holder["thread_id"])
        # An answer from before the checkout is about the previous holder.
        is_current = thread is not None and holder["for"] >= age
        holder["doing"] = describe(thread) if thread and is_current else None
