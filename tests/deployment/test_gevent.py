"""The same pool in a process that gevent has patched.

In a process of its own, since a patch cannot be taken back. The server lives in this
one: its program would otherwise be watched by patched code.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from flask_mysqlpool.testing import LocalServer

PRELUDE = """
import sys
from gevent import monkey; monkey.patch_all()
import gevent, gevent.event
from flask_mysqlpool import ConnectionShared, Pool, PoolConfig, PoolTimeout

def make_pool(**settings):
    settings = {"URL": sys.argv[1], "TIMEOUT": 10, **settings}
    return Pool(PoolConfig.from_mapping(settings))

def query(pool, statement="SELECT CONNECTION_ID()", timeout=None):
    with pool.connection(timeout=timeout) as connection:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

def together(count, call):
    greenlets = [gevent.spawn(call) for _ in range(count)]
    gevent.joinall(greenlets, raise_error=True)
    return [greenlet.value for greenlet in greenlets]
"""


def run(server: LocalServer, program: str, prelude: str = PRELUDE) -> None:
    done = subprocess.run(
        [sys.executable, "-c", prelude + program, server.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(autouse=True, scope="module")
def gevent() -> None:
    pytest.importorskip("gevent")


def test_greenlets_share_a_bounded_pool(server: LocalServer) -> None:
    run(
        server,
        """
pool = make_pool(MAX_SIZE=4)
ids = together(50, lambda: [query(pool) for _ in range(20)])
assert len({id for answers in ids for ((id,),) in answers}) <= 4
assert pool.stats().checkouts == 1000
assert pool.stats().in_use == 0
pool.close()
""",
    )


def test_a_slow_statement_lets_other_greenlets_go_on(server: LocalServer) -> None:
    run(
        server,
        """
pool = make_pool(MAX_SIZE=2)
slow = gevent.spawn(query, pool, "SELECT SLEEP(30)")
while not pool.stats().in_use:
    gevent.sleep(0)
query(pool)
assert not slow.ready()
slow.kill()
assert pool.stats().discarded_by_reason == {"dead": 1}
pool.close()
""",
    )


def test_a_timeout_of_gevent_in_mid_query_costs_just_that_connection(
    server: LocalServer,
) -> None:
    run(
        server,
        """
pool = make_pool(MAX_SIZE=1, KILL_ABANDONED=False)
query(pool)
try:
    with gevent.Timeout(1):
        query(pool, "SELECT SLEEP(30)")
except gevent.Timeout:
    pass
else:
    raise AssertionError("no timeout")
assert pool.stats().size == 0
query(pool)
pool.close()
""",
    )


def test_what_a_timeout_of_gevent_ends_is_killed_at_the_server(
    server: LocalServer,
) -> None:
    run(
        server,
        """
import logging
logging.disable()
pool = make_pool(MAX_SIZE=1)
query(pool)
try:
    with gevent.Timeout(1):
        query(pool, "SELECT SLEEP(600)")
except gevent.Timeout:
    pass
with gevent.Timeout(30):
    while not pool.stats().killed:
        gevent.sleep(0.01)
pool.close()
""",
    )


def test_a_timeout_of_gevent_while_waiting_loses_no_connection(
    server: LocalServer,
) -> None:
    run(
        server,
        """
pool = make_pool(MAX_SIZE=1)
with pool.connection():
    try:
        with gevent.Timeout(0.1):
            pool.connection()
    except gevent.Timeout:
        pass
    else:
        raise AssertionError("no timeout")
    assert pool.stats().waiting == 0
query(pool, timeout=1)
pool.close()
""",
    )


def test_two_greenlets_in_one_connection_raise(server: LocalServer) -> None:
    run(
        server,
        """
pool = make_pool(MAX_SIZE=1)
with pool.connection() as connection:
    cursor = connection.cursor()
    slow = gevent.spawn(connection.cursor().execute, "SELECT SLEEP(0.3)")
    while not connection._guard.locked():
        gevent.sleep(0)
    try:
        cursor.execute("SELECT 1")
    except ConnectionShared:
        pass
    else:
        raise AssertionError("shared")
    slow.get()
    cursor.execute("SELECT 1")
pool.close()
""",
    )


def test_a_pool_that_connected_before_the_patch_also_connects_after_it(
    server: LocalServer,
) -> None:
    """A worker of gunicorn's with --preload gets such a pool."""
    run(
        server,
        """
import sys, time, warnings
from flask_mysqlpool import Pool, PoolConfig
pool = Pool(PoolConfig.from_mapping({"URL": sys.argv[1]}))

def connect():
    connection = pool._connector.connect(time.monotonic() + 10)
    connection.execute("SELECT 1", unbuffered=False)
    connection.close()

connect()
warnings.simplefilter("ignore")  # it warns of its being late
from gevent import monkey; monkey.patch_all()
connect()
""",
        prelude="",
    )
