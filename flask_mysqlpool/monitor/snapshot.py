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
from ..workers.exited import total
from ..workers.overview import (
    Overview,
    capacity,
    holders,
    last_failure,
    last_timeout,
    reason,
    recent,
    totals,
)
from ..workers.status import TIMES, WorkerStatus
from .percentiles import EMPTY, summary
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
        #: By what is compared, not hashed: callables of settings may have no hash.
        self._caches: list[tuple[object, ServerCache]] = []
        self._lines: dict[str, deque[tuple[float, int, int]]] = {}

    def server_cache(self, config: PoolConfig) -> ServerCache:
        """Return the cache of a server and account, which binds may share."""
        key = *_server(config), config.user, config.password
        with self._lock:
            for known, cache in self._caches:
                if known == key:
                    return cache
            self._caches.append((key, cache := ServerCache(config)))
            return cache

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
            seen = _seen_by_server(site, bind, answers[bind], pool["holders"])
            pool["seen_by_server"] = seen
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
    return [*site.pauses(), *site.problems]


def _pool(site: Overview, bind: str) -> dict[str, Any]:
    config, workers = site.pools[bind], site.workers[bind]
    sums, counts = totals(workers), total(worker.counts for worker in workers)
    held, timeout = holders(workers), last_timeout(workers)
    failure = last_failure(workers)
    most = capacity(config, len(workers))
    #: From the most severe one.
    states = {
        "paused": site.is_paused(bind),
        "failing": recent(failure),
        "waiting": sums["waiting"],
        "timeouts": recent(timeout),
        "unused": not workers,
        "full": sums["in_use"] >= most,
        "ok": True,
    }
    return {
        "state": next(state for state, applies in states.items() if applies),
        "server": config.server,
        "max_size": config.max_size,
        "max_host_connections": config.max_host_connections,
        "capacity": most,
        "paused": states["paused"],
        "totals": sums,
        "waited": max((worker.waited for worker in workers), default=0.0),
        "workers": [_public(worker) for worker in workers],
        "holders": [{k: h.get(k) for k in _COLUMNS} for h in held[:LISTED]],
        # A worker publishes the details of its first connections only.
        "unlisted": max(sums["in_use"], len(held)) - len(held[:LISTED]),
        **{name: summary(counts.get(name, EMPTY)) for name in TIMES},
        "discarded_by_reason": counts.get("discarded_by_reason", {}),
        "last_timeout": timeout and timeout["ago"],
        "connect_failure": failure,
    }


def _public(worker: WorkerStatus) -> dict[str, Any]:
    silence = time.time() - worker.heard
    expected = worker.size or worker.waiting
    return {
        **{name: getattr(worker, name) for name in _FIELDS},
        "silent": round(silence, 1) if expected and silence > SILENT else 0,
        "discarded_by_reason": worker.discarded_by_reason or {},
        **{name: getattr(worker, name) or EMPTY for name in TIMES},
    }


# The server


def _query(site: Overview, memory: Memory) -> dict[str, Answer]:
    deadline = time.monotonic() + BUDGET
    return {
        bind: memory.server_cache(config).answer(may_query=time.monotonic() < deadline)
        for bind, config in site.pools.items()
    }


def _server(config: PoolConfig) -> tuple[object, ...]:
    """Return what identifies a server: CONNECT may lead elsewhere by one address."""
    return config.server, config.connect


def _claimed(site: Overview, bind: str) -> set[int]:
    """Return the thread ids that all workers have at this bind's server."""
    place = _server(site.pools[bind])
    return {
        number
        for other, config in site.pools.items()
        if _server(config) == place
        for worker in site.workers[other]
        for number in worker.all_thread_ids
    }


def _seen_by_server(
    site: Overview, bind: str, answer: Answer, held: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the server reports, and add to each holder what it does there."""
    report = answer.report
    if report is None:
        return {"error": answer.error}
    if report.threads is None or None in (report.connected, report.max_connections):
        return {"error": "does not tell its connections"}
    seen = {
        "version": report.version,
        "max_connections": report.max_connections,
        "connected": report.connected,
        "threads": len(report.threads),
    }
    if "," in site.pools[bind].host:
        return seen  # with several hosts, thread ids are ambiguous
    threads = {thread.thread_id: thread for thread in report.threads}
    age = time.monotonic() - answer.queried
    for holder in held:
        thread = threads.get(holder["thread_id"])
        # An answer from before the checkout is about the previous holder.
        is_current = thread is not None and holder["for"] >= age
        holder["doing"] = describe(thread) if thread and is_current else None
    return {**seen, "orphans": len(threads.keys() - _claimed(site, bind))}
