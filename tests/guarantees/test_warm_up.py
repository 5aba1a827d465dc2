"""``warm_up()``: the connections of ``MIN_SIZE`` are open when it returns."""

from __future__ import annotations

import threading
import time

import pytest
from conftest import MakeApp, MakePool, extension, until
from pymysql.err import OperationalError

from flask_mysqlpool import PoolTimeout, ServerUnavailable
from flask_mysqlpool.testing import FaultProxy

pytestmark = pytest.mark.one_engine


@pytest.mark.parametrize(("minimum", "opened"), [(0, 1), (3, 3)])
def test_a_warm_pool_has_its_least_number_of_connections(
    make_pool: MakePool, minimum: int, opened: int
) -> None:
    pool = make_pool(MIN_SIZE=minimum, MAX_SIZE=4)

    pool.warm_up()
    stats = pool.stats()
    pool.warm_up()

    assert stats.in_use == 0 and stats.idle >= opened
    assert pool.stats().checkouts == stats.checkouts


def test_connections_in_use_count(make_pool: MakePool) -> None:
    pool = make_pool(MIN_SIZE=2, MAX_SIZE=2)
    with pool.connection(), pool.connection():
        pool.warm_up(timeout=0)


def test_no_more_are_opened_than_the_limit_allows(make_pool: MakePool) -> None:
    pool = make_pool(MIN_SIZE=3, MAX_SIZE=3)
    pool.limit(1)
    pool.warm_up(timeout=0)

    assert pool.stats().size == 1


def test_a_server_that_is_not_there_yet_is_tried_again(
    make_pool: MakePool, proxy: FaultProxy
) -> None:
    proxy.refuse()
    pool = make_pool(HOST=proxy.host, PORT=proxy.port, MIN_SIZE=2, TIMEOUT=30)
    thread = threading.Thread(target=pool.warm_up)
    thread.start()
    until(lambda: pool._state.connects.failing)
    proxy.listen()
    thread.join()

    assert pool.stats().idle >= 2


def test_at_the_deadline_it_raises_what_a_checkout_raises(make_pool: MakePool) -> None:
    pool = make_pool(PORT=1)
    begun = time.monotonic()

    with pytest.raises((ServerUnavailable, PoolTimeout)):
        pool.warm_up(timeout=0.2)

    assert 0.2 <= time.monotonic() - begun < 5


def test_a_wrong_password_is_raised_at_once(make_pool: MakePool) -> None:
    pool = make_pool(PASSWORD="wrong", TIMEOUT=100)

    with pytest.raises(OperationalError, match="Access denied"):
        pool.warm_up()


def test_an_app_warms_all_its_pools_or_one(make_app: MakeApp) -> None:
    app = make_app()
    app = make_app(BINDS={"reports": {"URL": app.config["MYSQLPOOL_URL"]}}, MIN_SIZE=2)
    db = extension(app)
    with app.app_context():
        db.warm_up(bind="reports")
        assert db.stats("reports").idle >= 2 and db.stats().size == 0
        db.warm_up(timeout=30)
        assert db.stats().idle >= 2
