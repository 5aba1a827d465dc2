"""The books balance while the nodes of a Galera cluster fail, one after the other.

Three pools write to it at once: one through HAProxy, two that have the nodes in a list.
What a client without any pool sees meanwhile is the cluster's own.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pymysql
import pytest
from clusters import (
    HOST,
    PASSWORD,
    GaleraCluster,
    HAProxy,
    find_galera,
    find_haproxy,
    missing,
    run,
)
from conftest import until
from ledger import Bank, Figures, Manner, Transfer, audit, furnish, in_retries
from pymysql.err import MySQLError

from flask_mysqlpool import CommitUnknown, Pool, PoolConfig
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.testing import LocalServer

LACK = missing(find_galera, find_haproxy)
pytestmark = pytest.mark.skipif(bool(LACK), reason=LACK)

#: More than the cluster takes to go on without a node.
READ_TIMEOUT = 3.0
WORKERS_PER_POOL = 2
#: Transfers that every pool makes before the next thing happens.
SOME = 20
#: Seconds between two transfers of a worker: others need the processors, too.
REST = 0.005


@pytest.fixture(scope="module")
def cluster() -> Iterator[GaleraCluster]:
    with GaleraCluster() as cluster:
        yield cluster


def make_pool(**settings: Any) -> Pool:
    given = {
        "USER": "app",
        "PASSWORD": PASSWORD,
        "DATABASE": "test",
        "MAX_SIZE": WORKERS_PER_POOL,
        "CONNECT_TIMEOUT": 3,
        "READ_TIMEOUT": READ_TIMEOUT,
        "SETSESSION": ["SET innodb_lock_wait_timeout = 1"],
    }
    return Pool(PoolConfig.from_mapping(given | settings))


@contextmanager
def three_pools(cluster: GaleraCluster, proxy: HAProxy) -> Iterator[list[Pool]]:
    places: dict[str, dict[str, Any]] = {
        "HAProxy": {"HOST": HOST, "PORT": proxy.port, "TARGET": "primary"},
        "list, primary": {"HOST": cluster.hosts, "TARGET": "primary"},
        "list, any": {"HOST": cluster.hosts},
    }
    with ExitStack() as stack:
        pools = [make_pool(NAME=name, **place) for name, place in places.items()]
        for pool in pools:
            stack.callback(pool.close)
        yield pools


class Tellers(Bank):
    """Make transfers in two manners, and note when they succeed, for each pool."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        workers = WORKERS_PER_POOL * len(pools)
        manners = [Manner(), Manner(end=in_retries)]
        super().__init__(pools, 10**9, manners, seed=1, workers=workers)
        self.done: dict[str, list[float]] = {pool.name: [] for pool in pools}

    def _serve_customer(self, pool: Pool, rng: random.Random) -> None:
        transfer = self._new_transfer(rng)
        try:
            with pool.connection() as connection:
                rng.choice(self.manners).move(connection, transfer)
        except MySQLError as error:
            cause = error.__cause__ if isinstance(error, CommitUnknown) else None
            said = cause or error
            transfer.error = f"{pool.name}: {type(said).__name__} {said.args[0]}"
        with self.progress:
            self.made.append(transfer)
            if transfer.error:
                self.errors[transfer.error] += 1
            if transfer.outcome == "acknowledged":
                self.done[pool.name].append(time.monotonic())
        self._stop.wait(REST)

    def go_on(self) -> None:
        """Wait until every pool has made some more."""
        wanted = {name: len(done) + SOME for name, done in self.done.items()}
        until(lambda: all(len(self.done[n]) >= wanted[n] for n in wanted), 40)


class Witness:
    """Writes to each node without a pool, and connects again after every error."""

    def __init__(self, servers: Sequence[LocalServer]) -> None:
        run(
            servers[0],
            "CREATE TABLE witness (id INT AUTO_INCREMENT PRIMARY KEY)",
            database="test",
        )
        self.done: list[float] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(server.port,))
            for server in servers
        ]

    def __enter__(self) -> Witness:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, port: int) -> None:
        while not self._stop.wait(0.01):
            with suppress(MySQLError), self._connect(port) as connection:
                self._write(connection)

    def _write(self, connection: pymysql.Connection[Any]) -> None:
        with connection.cursor() as cursor:
            while not self._stop.wait(0.01):
                cursor.execute("INSERT INTO witness VALUES ()")
                self.done.append(time.monotonic())

    def _connect(self, port: int) -> pymysql.Connection[Any]:
        return pymysql.connect(
            host=HOST,
            port=port,
            user="app",
            password=PASSWORD,
            database="test",
            autocommit=True,
            connect_timeout=1,
            read_timeout=READ_TIMEOUT,
        )


def longest_pause(times: Sequence[float], begin: float, end: float) -> float:
    """The longest while without one of the times, from begin to end."""
    moments = [begin, *sorted(t for t in list(times) if begin < t < end), end]
    return max(b - a for a, b in zip(moments, moments[1:], strict=False))


@pytest.mark.timeout(200)
def test_the_books_balance_while_nodes_are_killed_frozen_and_isolated(
    cluster: GaleraCluster,
) -> None:
    figures = Figures("three pools", "galera")
    begun = time.monotonic()
    on_first = on(cluster.servers[0])
    furnish(on_first)
    with HAProxy(cluster) as proxy, three_pools(cluster, proxy) as pools:
        bank = Tellers(pools)
        with Witness(cluster.servers) as witness:
            bank.open()
            try:
                endure(cluster, proxy, bank, witness, figures)
            finally:
                assert bank.close(0)
        for pool in pools:
            figures.discarded.update(pool.stats().discarded_by_reason)
    books = [transfers_stored(server) for server in cluster.servers]
    audit(on_first, bank.made, figures)
    figures.outcomes = Counter(transfer.outcome for transfer in bank.made)
    figures.errors, figures.seconds = bank.errors, time.monotonic() - begun

    print(figures, what_was_said(bank.made, books[0]), sep="\n")
    assert books[0] == books[1] == books[2]
    assert figures.damage == 0, figures
    assert figures.created == 0, figures


def endure(
    cluster: GaleraCluster,
    proxy: HAProxy,
    bank: Tellers,
    witness: Witness,
    figures: Figures,
) -> None:
    """Have every node fail in turn, and come back."""
    plan: list[tuple[str, Callable[[int], None], int]] = [
        ("killed", cluster.kill, 0),
        ("killed", cluster.kill, 1),
        ("killed", cluster.kill, 2),
        ("frozen", cluster.freeze, 0),
        ("isolated", cluster.isolate, 0),
    ]
    bank.go_on()
    for what, strike, node in plan:
        begin = time.monotonic()
        strike(node)
        # It has happened only when the others have gone on without the node.
        until(lambda node=node: node not in proxy.ready(), 20)  # type: ignore[misc]
        bank.go_on()
        end = time.monotonic()
        figures.faults[what] += 1
        own = longest_pause(witness.done, begin, end)
        print(f"\nnode {node} {what}: the cluster itself paused for {own:.2f} s")
        for name, done in bank.done.items():
            pause = longest_pause(done, begin, end)
            print(f"  {name}: {pause:.2f} s without a transfer")
        cluster.rejoin(node)
        print(f"  back after {time.monotonic() - end:.2f} s")
        until(lambda: len(proxy.ready()) == 3, 20)
        bank.go_on()


def on(server: LocalServer) -> Callable[..., tuple[tuple[Any, ...], ...]]:
    # Not before the node has all that was committed anywhere.
    caught_up = "SET SESSION wsrep_sync_wait = 15"
    return lambda statement: run(server, caught_up, statement, database="test")


def transfers_stored(server: LocalServer) -> set[int]:
    return {number for [number] in on(server)("SELECT transfer FROM journal")}


def what_was_said(made: Sequence[Transfer], stored: set[int]) -> str:
    found = Counter(
        (t.outcome, t.error, "stored" if t.number in stored else "not stored")
        for t in made
        if t.outcome != "acknowledged"
    )
    return "\n".join(f"  {' | '.join(key)}: {n}" for key, n in found.most_common())


@pytest.fixture
def isolated(cluster: GaleraCluster) -> Iterator[Callable[[], LocalServer]]:
    """The first node, which is cut off from the others when this is called."""

    def isolate() -> LocalServer:
        cluster.isolate(0)
        return cluster.servers[0]

    yield isolate
    cluster.rejoin(0)


def test_a_commit_that_the_cluster_interrupts_is_of_unknown_outcome(
    cluster: GaleraCluster, isolated: Callable[[], LocalServer]
) -> None:
    run(cluster.servers[0], "CREATE TABLE interrupted (a INT)", database="test")
    pool = make_pool(HOST=cluster.hosts)
    with pool.connection() as connection:
        with pytest.raises(CommitUnknown) as info, transaction(connection):
            connection.query("INSERT INTO interrupted VALUES (1)")
            isolated()

        assert isinstance(info.value.__cause__, MySQLError)
        assert info.value.__cause__.args[0] == 1180
    # The node lets everybody in, and does nothing for them.
    with pool.connection() as connection:
        connection.query("SELECT 1")
    pool.reset()
    for _ in range(5):
        with pool.connection() as connection:
            connection.query("SELECT * FROM interrupted")
    pool.close()
