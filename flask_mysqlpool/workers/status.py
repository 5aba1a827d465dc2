"""The status that a worker publishes of one of its pools: one typed record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..config import PoolConfig
from ..pool.driver.logs import NAME, plain
from ..pool.stats import BOUNDS, ConnectionStats, PoolStats

#: Connections of which a record has the details.
LISTED = 100

#: The names of histograms: durations of checkouts, of uses and of connects.
TIMES = "wait", "use", "create"
#: The fields that never decrease.
COUNTED = (
    *("checkouts", "timeouts", "opened", "discarded", "killed"),
    "discarded_by_reason",
    *TIMES,
)

Counts = dict[str, Any]
#: The number of durations in each bucket, and above, and their sum.
Histogram = list[float]
Reasons = dict[str, int]
#: The JSON form of a :class:`~.stats.ConnectionStats`.
Connection = dict[str, Any]


@dataclass(kw_only=True)
class WorkerStatus:
    """The status of one pool of one process.

    Records of other versions may lack the fields that have a default.
    """

    app: str
    bind: str
    user: str | None = None
    server: str
    #: The process, and the group of processes that one parent has started.
    pid: int
    site: str = ""
    #: The newest desired state that the worker has applied.
    generation: int
    size: int
    idle: int
    in_use: int
    connecting: int
    waiting: int
    checkouts: int
    timeouts: int
    opened: int
    discarded: int
    discarded_by_reason: Reasons | None = None
    killed: int = 0
    wait: Histogram | None = None
    use: Histogram | None = None
    create: Histogram | None = None
    #: When the record was written.
    updated: float
    paused: bool
    outdated: int
    last_timeout: float | None = None
    last_connect_failure: float | None = None
    connect_error: str | None = None
    waited: float = 0.0
    short: bool = False
    pipelining: bool = True
    #: The first connections, and the thread ids of all.
    connections: list[Connection]
    thread_ids: list[int] | None = None
    #: Set by the reader: the file's name, the worker's name for people, and the time
    #: of its last heartbeat.
    id: str = field(init=False, default="")
    name: str = field(init=False, default="")
    heard: float = field(init=False, default=0.0)

    @classmethod
    def of(
        cls, stats: PoolStats, connections: Sequence[ConnectionStats], **about: Any
    ) -> WorkerStatus:
        """Return the status of a pool of this process."""
        shared = {name: v for name, v in vars(stats).items() if name in _CHECKS}
        return cls(
            **shared
            | {name: list(getattr(stats, f"{name}_seconds")) for name in TIMES}
            | {"connections": [_describe(c) for c in connections[:LISTED]]}
            | {"thread_ids": [c.thread_id for c in connections]}
            | {"pid": os.getpid(), "updated": time.time()}
            | about
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record that :meth:`from_json` parses, and what the reader set."""
        return vars(self).copy()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> WorkerStatus:
        """Parse a record; :exc:`ValueError` for one that another version has changed.

        Counters of another form are left out, and fields that this version lacks.
        """
        known = {name: record[name] for name in _CHECKS if record.get(name) is not None}
        wrong = {name for name, value in known.items() if not _CHECKS[name](value)}
        if not wrong <= _MAY_DIFFER or not known.keys() >= _NEEDED:
            raise ValueError("a worker of another version of this package")
        status = cls(**{name: known[name] for name in known.keys() - wrong})
        status.connections = [
            {name: each.get(name) for name in _CONNECTION}
            for each in status.connections
        ]
        return status

    @property
    def key(self) -> str:
        """The key of the pool's desired state, counters and limit."""
        return key_of(vars(self))

    @property
    def counts(self) -> Counts:
        """The counters, without those that another version changed."""
        return counts(vars(self))

    @property
    def all_thread_ids(self) -> list[int]:
        """The thread ids of all connections, as far as they are known."""
        return self.thread_ids or [c["thread_id"] for c in self.connections]


def _describe(connection: ConnectionStats) -> Connection:
    return {
        "thread_id": connection.thread_id,
        "state": connection.state,
        "for": round(connection.since, 3),
        "endpoint": connection.endpoint and plain(connection.endpoint, NAME),
        "age": round(connection.age, 1),
    }


def identity(app: str, bind: str, config: PoolConfig) -> dict[str, str | None]:
    """Return what identifies a pool on this host, the same in all its workers.

    Several sites may run from one source tree, with one app name: so the server, the
    database and the account are part of it.
    """
    user, server = config.user, config.server
    return {"app": app, "bind": bind, "user": user, "server": server}


def key_of(pool: Mapping[str, Any]) -> str:
    """Return the key of a pool's desired state, counters and limit."""
    user = pool.get("user") or ""
    return f"{pool.get('app')}/{pool.get('bind')} {user}@{pool.get('server')}"


def process_group_id() -> str:
    """Identify the process that has started this one, and so all workers of a site."""
    parent = os.getppid()
    start = space = ""
    with suppress(OSError):
        # Each container has process ids of its own.
        space = os.readlink("/proc/self/ns/pid")
        # Process ids are used again, but not with the same start time.
        with open(f"/proc/{parent}/stat", "rb") as file:
            start = file.read().rpartition(b")")[2].split()[19].decode()
    return f"{parent}:{start}:{space}"


def counts(record: Mapping[str, Any]) -> Counts:
    """Return the counters of a record, without those that another version changed."""
    known = {name: record[name] for name in COUNTED if record.get(name) is not None}
    return {name: value for name, value in known.items() if _CHECKS[name](value)}


_Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """Tell whether it is a finite number of plausible size."""
    return isinstance(value, (int, float)) and abs(value) < 1 << 64


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and _is_amount(value)


def _is(kind: type) -> _Check:
    return lambda value: isinstance(value, kind)


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_histogram(value: Any) -> bool:
    buckets = _list_of(_is_amount)(value) and len(value) == len(BOUNDS) + 2
    return buckets and all(float(count).is_integer() for count in value[:-1])


def _are_reasons(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_integer, value.values()))


#: The check of each field of a connection, and those that it may lack.
_CONNECTION = {
    "thread_id": _is_integer,
    "state": _is(str),
    "for": _is_number,
    "endpoint": _is(str),
    "age": _is_number,
}
_MAY_LACK = {"endpoint", "age"}


def _is_connection(value: Any) -> bool:
    return isinstance(value, dict) and all(
        check(value.get(name)) or (name in _MAY_LACK and value.get(name) is None)
        for name, check in _CONNECTION.items()
    )


_CHECK_OF = {
    "int": _is_integer,
    "float": _is_number,
    "str": _is(str),
    "bool": _is(bool),
    "Histogram": _is_histogram,
    "Reasons": _are_reasons,
    "list[int]": _list_of(_is_integer),
    "list[Connection]": _list_of(_is_connection),
}
_FIELDS = [field for field in fields(WorkerStatus) if field.init]
#: The check of each field's value, by the field's annotation.
_CHECKS = {f.name: _CHECK_OF[str(f.type).removesuffix(" | None")] for f in _FIELDS}
_NEEDED = {f.name for f in _FIELDS if f.default is MISSING}
#: The fields that are left out where another version gives them another form.
_MAY_DIFFER = {*TIMES, "discarded_by_reason"}
