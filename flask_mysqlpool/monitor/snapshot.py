"""The monitor's data: a snapshot of an app's pools, over all workers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask

from ..config import PoolConfig
from ..pool.driver.process import process
from ..workers.fleet import RECENT, Fleet, holders, totals
from ..workers.status import TIMES, WorkerStatus, identity
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


@dataclass(frozen=True)
class Site:
    """An app's pools, and the workers that use them."""

    app: str
    configs: Mapping[str, PoolConfig]
    fleet: Fleet | None
    workers: Mapping[str, list[WorkerStatus]]
    #: Why only this process is shown instead of all workers, or an empty string.
    unseen: str

    @property
    def problems(self) -> list[str]:
        if self.unseen:
            return [f"Only this worker is shown, {os.getpid()}: {self.unseen}."]
        if self.fleet is None:
            return []
        desired = {bind: self.fleet.desired(bind) for bind in self.configs}
        pauses = [f"{b}: {d.in_words()}" for b, d in desired.items() if d.paused]
        return [*pauses, *self.fleet.problems]


def read_site(app: Flask) -> Site:
    """Read what all workers publish; if that fails, the state of this process."""
    states = app.extensions.get("mysqlpool")
    if not states:
        raise RuntimeError(
            f"the monitor has nothing to show: the app {app.name!r} has no MySQLPool"
        )
    configs = {}
    for state in states.values():
        configs.update(state.published())
    status_dir = next(iter(states.values())).status_dir
    fleet, unseen = None, "STATUS_DIR is False"
    if status_dir is not None:
        fleet = Fleet(status_dir, app.name, configs)
        try:
            return Site(app.name, configs, fleet, fleet.workers(), "")
        except OSError as error:
            unseen = reason(error)
    own = {
        bind: [_own_status(pool, identity(app.name, bind, configs[bind]))]
        for bind, pool in own_pools(app).items()
    }
    return Site(app.name, configs, None, own, unseen)


def reason(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def own_pools(app: Flask) -> dict[str, Any]:
    """Return this process's pools, by their names for commands."""
    return {
        bind: pool
        for db, state in app.extensions["mysqlpool"].items()
        for bind, pool in zip(state.published(), db.pools.values(), strict=True)
    }


def _own_status(pool: Any, identity: Mapping[str, str | None]) -> WorkerStatus:
    """Return what this process would publish as a worker."""
    status = WorkerStatus.of(pool.stats(), pool.connections(), **identity)
    status.name, status.heard = str(status.pid), status.updated
    return status


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
    site: Site, memory: Memory, *, with_server: bool, with_line: bool
) -> dict[str, Any]:
    """Return all data of the page that change."""
    pools = {bind: _pool(site, bind) for bind in site.configs}
    answers = _query(site, memory) if with_server else {}
    for bind, pool in pools.items():
        line = memory.line(bind, pool["totals"])
        if with_line:
            pool["line"] = line
        if bind in answers:
            _add_server(pool, answers[bind])
            if "," not in site.configs[bind].host:
                # With several hosts, thread ids are ambiguous.
                _match(pool, answers[bind], _claimed(site, bind))
    return {
        "app": site.app,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": round(time.time(), 3),
        "problems": site.problems,
        "pools": pools,
    }


def _pool(site: Site, bind: str) -> dict[str, Any]:
    config, workers = site.configs[bind], site.workers.get(bind, [])
    counts = totals(workers)
    held = holders(workers)
    pool = {
        "server": config.server,
        "max_size": config.max_size,
        "max_host_connections": config.max_host_connections,
        "capacity": _capacity(config, len(workers)),
        "paused": _is_paused(site, bind),
        "totals": counts,
        "waited": max((worker.waited for worker in workers), default=0.0),
        "workers": [_public(worker) for worker in workers],
        "holders": [{k: h.get(k) for k in _COLUMNS} for h in held[:LISTED]],
        # A worker publishes the details of its first connections only.
        "unlisted": max(counts["in_use"], len(held)) - len(held[:LISTED]),
        **{name: summary(workers, name) for name in TIMES},
        "discarded_by_reason": reasons(workers),
        "last_timeout": _ago(worker.last_timeout for worker in workers),
        "connect_failure": _failure(workers),
    }
    return {"state": _state(pool), **pool}


def _capacity(config: PoolConfig, workers: int) -> int:
    """Return the maximum number of connections of these workers together."""
    most = config.max_size * workers
    return min(most, config.max_host_connections or most)


def _is_paused(site: Site, bind: str) -> bool:
    workers = site.workers.get(bind, [])
    if site.fleet is not None:
        return site.fleet.is_paused(bind, workers)
    return any(worker.paused for worker in workers)


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


def _ago(moments: Iterable[float | None]) -> float | None:
    known = [moment for moment in moments if moment]
    return round(max(time.time() - max(known), 0), 1) if known else None


def _failure(workers: Iterable[WorkerStatus]) -> dict[str, Any] | None:
    """Return the last failed connect, however long ago."""
    last = max(workers, key=lambda w: w.last_connect_failure or 0.0, default=None)
    if last is None or not last.last_connect_failure:
        return None
    ago, error = _ago([last.last_connect_failure]), last.connect_error or "unknown"
    return {"pid": last.pid, "worker": last.name, "ago": ago, "error": error}


# The server


def _query(site: Site, memory: Memory) -> dict[str, Answer]:
    deadline = time.monotonic() + BUDGET
    return {
        bind: memory.server_cache(config).answer(may_query=time.monotonic() < deadline)
        for bind, config in site.configs.items()
    }


def _claimed(site: Site, bind: str) -> set[int]:
    """Return the thread ids that all workers have at this bind's server."""
    place = site.configs[bind].server
    return {
        number
        for other, config in site.configs.items()
        if config.server == place
        for worker in site.workers.get(other, [])
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
