"""Names of hosts are looked up by the deadline, whatever the resolver does."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import until
from liars import Liar, honest
from pymysql.err import OperationalError

from flask_mysqlpool import Pool, PoolConfig
from flask_mysqlpool.pool.driver import sockets
from flask_mysqlpool.pool.driver.sockets import MOST, addresses


class Resolver:
    """Stands in for ``socket.getaddrinfo``; looks up what it may, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        #: Names whose look-up hangs until this is set.
        self.hanging: dict[str, threading.Event] = {}

    def __call__(self, host: str, port: int, **about: object) -> Any:
        self.asked.append(host)
        if host in self.hanging:
            self.hanging[host].wait(30)
        if host.startswith("no-"):
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(sockets, "_processes", {})
    yield resolver
    for event in resolver.hanging.values():
        event.set()


def soon(seconds: float = 0.05) -> float:
    return time.monotonic() + seconds


def test_an_address_takes_no_look_up(resolver: Resolver) -> None:
    assert addresses("127.0.0.1", 1, soon())[0][0] == socket.AF_INET
    assert addresses("::1", 1, soon())[0][0] == socket.AF_INET6
    assert resolver.asked == []


def test_a_name_is_looked_up_each_time(resolver: Resolver) -> None:
    """A name that is made to point elsewhere is followed."""
    for _ in range(2):
        [(*_, address)] = addresses("db", 3306, soon(5))
        assert address == ("127.0.0.1", 3306)
    assert resolver.asked == ["db", "db"]


def test_what_the_resolver_raises_is_raised(resolver: Resolver) -> None:
    with pytest.raises(socket.gaierror, match="not known"):
        addresses("no-such-host", 3306, soon(5))


def test_a_look_up_that_hangs_ends_by_the_deadline(resolver: Resolver) -> None:
    resolver.hanging["db"] = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="the look-up of the name hangs"):
        addresses("db", 3306, soon())
    assert time.monotonic() - began < 1

    # The next does not wait for what that one has given up.
    del resolver.hanging["db"]
    assert addresses("db", 3306, soon(5))


def test_who_asks_for_the_same_name_shares_the_look_up(resolver: Resolver) -> None:
    event = resolver.hanging["db"] = threading.Event()
    found: list[Any] = []

    def look_up() -> None:
        found.append(addresses("db", 3306, soon(20)))

    threads = [threading.Thread(target=look_up) for _ in range(5)]
    threads[0].start()
    until(lambda: resolver.asked)
    for thread in threads[1:]:
        thread.start()
    event.set()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    assert len(resolver.asked) < 5


def test_look_ups_that_hang_have_a_bound(resolver: Resolver) -> None:
    event = threading.Event()
    for number in range(MOST):
        resolver.hanging[f"db{number}"] = event
        with pytest.raises(TimeoutError):
            addresses(f"db{number}", 3306, soon(0.01))
    with pytest.raises(TimeoutError, match=f"{MOST} look-ups of names hang"):
        addresses("another", 3306, soon())
    assert "another" not in resolver.asked

    event.set()
    assert addresses("another", 3306, soon(5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_look_up_of_its_parent(resolver: Resolver) -> None:
    event = resolver.hanging["db"] = threading.Event()
    waiting = threading.Thread(target=lambda: addresses("db", 3306, soon(20)))
    waiting.start()
    until(lambda: resolver.asked)
    child = os.fork()
    if not child:
        status = 1
        try:
            resolver.hanging.clear()
            status = not addresses("db", 3306, soon(5))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    event.set()
    waiting.join()


def test_a_look_up_that_hangs_frees_its_place(resolver: Resolver) -> None:
    with Liar(honest) as server:
        settings = {"HOST": "db", "PORT": server.port, "USER": "app", "MAX_SIZE": 1}
        # Long enough to connect afterwards, on a busy machine, too.
        settings |= {"CONNECT_TIMEOUT": 1, "TIMEOUT": 10}
        pool = Pool(PoolConfig.from_mapping(settings))
        resolver.hanging["db"] = threading.Event()
        with pytest.raises(OperationalError) as info:
            pool.connection()
        assert info.value.args[0] == 2003
        assert isinstance(info.value.__cause__, TimeoutError)
        assert pool.stats().size == 0

        del resolver.hanging["db"]
        pool.connection().close()
        pool.close()


def test_the_address_to_bind_may_be_a_name_that_hangs(resolver: Resolver) -> None:
    resolver.hanging["here"] = threading.Event()
    settings = {"HOST": "127.0.0.1", "CONNECT_ARGS": {"bind_address": "here"}}
    pool = Pool(PoolConfig.from_mapping({**settings, "CONNECT_TIMEOUT": 0.1}))
    with pytest.raises(OperationalError, match="hangs"):
        pool.connection()
    pool.close()
