"""Whether a pool can serve: told at once, also when it cannot."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest
from conftest import MakeApp, MakeServer, extension, until

from flask_mysqlpool import MySQLPool, get_db
from flask_mysqlpool.testing import FaultProxy, LocalServer

pytestmark = pytest.mark.one_engine


def test_a_pool_that_was_never_used_finds_out(make_app: MakeApp) -> None:
    app = make_app()
    db = extension(app)
    with app.app_context():
        health = db.health()
        assert (health.state, health.ok) == ("unknown", True)
        assert health.reasons == ("shop: no connection is open yet",)
        until(lambda: db.health().state == "ok")
        assert db.health().reasons == ()
        assert db.stats().opened == 1


def test_saturated_is_not_down_and_takes_no_time(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2)
    db = extension(app)
    with app.app_context(), ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(db.connection())
        assert db.health().state == "saturated"
        thread = threading.Thread(target=lambda: db.connection(app=app).close())
        thread.start()
        until(lambda: db.stats().waiting)
        before = time.perf_counter()
        healths = [db.health() for _ in range(100)]
        took = time.perf_counter() - before
        stack.close()
        thread.join()
        assert db.health().state == "ok"

    assert {health.state for health in healths} == {"saturated"}
    assert healths[0].reasons[0].startswith("shop: in use 2/2, waiting 1, for up to 0.")
    assert took / 100 < 0.1


def test_a_server_that_is_gone_is_down_until_it_is_back(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server()
    app = make_app(URL=server.url)
    db = extension(app)
    with app.app_context():
        get_db().close()
        server.stop()
        until(lambda: not _works(db))
        health = db.health()
        assert (health.state, health.ok) == ("down", False)
        assert health.reasons[0].startswith("shop: 2003: Can't connect")
        server.start()
        # Nobody but the question itself makes it try again.
        until(lambda: db.health().state == "ok")


def test_idle_connections_that_are_dead_are_no_health(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    """Nobody but the question asks for a connection."""
    server = make_server()
    app = make_app(URL=server.url)
    db = extension(app)
    with app.app_context():
        get_db().close()
        assert db.health().state == "ok"
        server.stop()
        until(lambda: db.health().state == "down")
        assert db.stats().idle == 0


def _works(db: MySQLPool) -> bool:
    try:
        db.connection().close()
    except Exception:
        return False
    return True


def test_a_server_that_hangs_does_not_hang_the_question(
    make_app: MakeApp, server: LocalServer, proxy: FaultProxy
) -> None:
    app = make_app(URL=server.url_at(proxy.port), CONNECT_TIMEOUT=0.2)
    db = extension(app)
    proxy.hang()
    with app.app_context():
        until(lambda: db.health().state == "down")
        assert "timed out" in db.health().reasons[0]
        proxy.resume()
        until(lambda: db.health().state == "ok")


def test_the_worst_of_all_pools_counts(make_app: MakeApp) -> None:
    app = make_app(BINDS={"nowhere": {"URL": "mysql://x@localhost:1"}})
    db = extension(app)
    with app.app_context():
        until(lambda: db.health().state == "down")
        until(lambda: db.health("default").state == "ok")
        assert db.health("nowhere").state == "down"
        db.pool().pause()
        assert db.health("default").state == "paused"
        assert list(db.health().pools) == ["default", "nowhere"]


def test_the_state_of_a_closed_pool_is_no_reason_to_connect(make_app: MakeApp) -> None:
    app = make_app()
    db = extension(app)
    with app.app_context():
        pool = db.pool()
        pool.close()
        pool.probe()
        assert pool.stats().size == 0


def test_a_pool_that_may_have_less_for_now_is_saturated_earlier(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=5)
    db = extension(app)
    with app.app_context(), db.connection():
        assert db.health().state == "ok"
        db.pool().limit(1)
        assert db.health().state == "saturated"


@pytest.mark.parametrize("name", ["other"])
def test_a_bind_that_does_not_exist_is_told(make_app: MakeApp, name: str) -> None:
    app = make_app()
    with app.app_context(), pytest.raises(ValueError, match="no bind is called"):
        extension(app).health(name)
