"""Every way in which Flask's contexts are used, and what ``get_db()`` makes of it.

As a program it tries them all with the Flask that it finds, so that one set of
packages can be tried with several::

    PYTHONPATH=.venv/flasks/3.0.0 python tests/contexts.py URL

It prints the versions, and for each row what went wrong: nothing, if all is well. It
wants a database in which it may create a table. What belongs into those folders::

    python tests/contexts.py --versions
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import json
import logging
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

from flask import (
    Flask,
    Response,
    abort,
    after_this_request,
    copy_current_request_context,
    got_request_exception,
    has_app_context,
    redirect,
    request_finished,
    request_started,
    request_tearing_down,
    stream_with_context,
)
from flask.cli import with_appcontext
from werkzeug.test import TestResponse

from flask_mysqlpool import (
    ConnectionReturned,
    ConnectionShared,
    MySQLPool,
    Pool,
    PooledConnection,
    close_db,
    get_db,
)

#: To be tried besides the one that is installed: a folder, and what pip puts there.
VERSIONS = {
    # Both lower bounds.
    "3.0.0": ("Flask==3.0.0", "Werkzeug==3.0.0"),
    "3.0.3": ("Flask==3.0.3",),
    # From 3.1.2 on, the context is torn down before a stream as well as after it.
    "3.1.0": ("Flask==3.1.0",),
}
#: How the reason begins why a row was not tried.
NOT_RUN = "not run: "
#: Seconds until what should happen counts as not happening.
PATIENCE = 10.0

T = TypeVar("T")
Row = Callable[["Bench"], None]
Setup = Callable[[Flask], object]
#: By their names, in the order of the table.
ROWS: dict[str, Row] = {}


def row(function: Row) -> Row:
    ROWS[function.__name__.replace("_", " ")] = function
    return function


class NotRun(Exception):
    """Something that the row needs is not installed."""


class Bench:
    """What one row works with: sites, and an ear for what nobody can catch."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sites: list[Site] = []
        #: What was logged, or raised where it is only printed.
        self.noise: list[str] = []
        #: Connections that nobody can return, before the context is gone that has them.
        self.lost = 0

    def site(self, before: Setup | None = None, **settings: Any) -> Site:
        self._sites.append(Site(self._url, before, settings))
        return self._sites[-1]

    def check(self) -> None:
        """After the row: everything has been returned, and in good order."""
        gc.collect()
        left = sum(site.in_use for site in self._sites)
        assert left <= self.lost, f"{left} still in use"
        # Those are not returned but taken away, by a thread that sees to it.
        until(lambda: not any(site.in_use for site in self._sites))
        discarded = [site.pool.stats().discarded for site in self._sites]
        assert sum(discarded) == self.lost, f"discarded: {discarded}"
        assert bool(self.noise) == bool(self.lost), self.noise
        # As a ResourceWarning, and in the log.
        expected = re.compile("was never returned|without being returned")
        assert all(map(expected.search, self.noise)), self.noise
        assert all(all(site.returned) for site in self._sites)

    def close(self) -> None:
        for site in self._sites:
            site.pool.close()


class Site:
    """An app with a pool."""

    def __init__(
        self, url: str, before: Setup | None, settings: dict[str, Any]
    ) -> None:
        self.app = app = Flask("contexts")
        given = {"URL": url, "TIMEOUT": 5, "MAX_SIZE": 4, "STATUS_DIR": False}
        for key, value in (given | settings).items():
            app.config[f"MYSQLPOOL_{key}"] = value
        app.config["TESTING"] = True
        if before is not None:
            before(app)
        self.db = MySQLPool(app)
        self.pool = contextvars.copy_context().run(self._find_pool)
        #: What was used, in that order; a handle that is kept shares its id with none.
        self.seen: list[PooledConnection] = []
        self.add(lambda: str(self.use()), "/own")

    def _find_pool(self) -> Pool:
        # Not torn down, as some rows count that, and others make it fail.
        self.app.app_context().push()
        return self.db.pool()

    def use(self) -> int:
        """Use ``get_db()`` in the context that is active; the server's number of it."""
        self.seen.append(self.db.get_db())
        return use(self.seen[-1])

    def add(self, view: Callable[..., Any], path: str = "/") -> None:
        self.app.add_url_rule(path, path, view)

    def get(self, path: str = "/") -> TestResponse:
        return self.app.test_client().get(path)

    @property
    def in_use(self) -> int:
        return self.pool.stats().in_use

    @property
    def handles(self) -> int:
        """How many different ones were seen."""
        return len(set(map(id, self.seen)))

    @property
    def returned(self) -> list[bool]:
        return [handle.returned for handle in self.seen]


_tokens = itertools.count()


def use(connection: PooledConnection) -> int:
    """The server's number of it, which must answer just what it was asked."""
    token = next(_tokens)
    [[answer, number]] = fetch(connection, f"SELECT {token}, CONNECTION_ID()")
    assert answer == token, f"{answer} instead of {token}"
    return int(number)


def fetch(connection: PooledConnection, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


@contextmanager
def raises(expected: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")


def until(condition: Callable[[], object]) -> None:
    """Wait for what is done by somebody who does not announce it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def in_thread(function: Callable[[], T]) -> T:
    """What comes of it in a thread that ends, and whose contexts end with it."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result(PATIENCE)


# Requests


@row
def a_plain_request(bench: Bench) -> None:
    site = bench.site()

    def view() -> str:
        assert site.use() == site.use() == use(get_db())
        assert get_db() is site.seen[0] is site.seen[1]
        assert site.in_use == 1
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.returned == [True, True]
    with raises(ConnectionReturned):
        use(site.seen[0])


@row
def close_db_twice(bench: Bench) -> None:
    site = bench.site(MAX_SIZE=1)

    def view() -> str:
        number = site.use()
        close_db()
        close_db()
        assert site.in_use == 0
        assert site.use() == number
        # Somebody else has the same connection now.
        with raises(ConnectionReturned):
            use(site.seen[0])
        get_db().close()
        assert site.use() == number
        close_db("default")
        close_db("default")
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.handles == 3


@row
def functions_before_and_after_the_view(bench: Bench) -> None:
    site = bench.site()
    ids: list[int] = []

    def note(response: Response | None = None) -> Any:
        ids.append(site.use())
        return response

    def view() -> str:
        after_this_request(note)
        note()
        return "fine"

    site.app.before_request(note)
    site.app.after_request(note)
    site.add(view)
    assert site.get().text == "fine"

    assert len(ids) == 4
    assert site.handles == len(set(ids)) == 1


@row
def signals(bench: Bench) -> None:
    site = bench.site()
    heard: list[str] = []

    def listen(*args: Any, **kwargs: Any) -> None:
        heard.append(str(site.use()))

    with ExitStack() as stack:
        for signal in (request_started, request_finished, request_tearing_down):
            stack.enter_context(signal.connected_to(listen, site.app))
        site.get("/own")

    assert len(heard) == 3
    assert site.seen[0] is site.seen[1] is site.seen[2]
    # The end of the request was over when the last signal was sent.
    assert site.handles == 2


@row
def functions_at_the_end_of_the_request(bench: Bench) -> None:
    calls: list[str] = []

    def listen(app: Flask) -> None:
        @app.teardown_request
        def at_the_end(error: BaseException | None) -> None:
            calls.append(str(site.use()))

    # They run in the reverse order: the first one when ours has run.
    site = bench.site(before=listen)
    listen(site.app)
    site.get("/own")
    with site.app.app_context():
        site.get("/own")

    assert len(calls) == 4
    assert site.handles == 4


@row
def functions_at_the_end_of_the_app_context(bench: Bench) -> None:
    calls: list[int] = []

    def listen(app: Flask) -> None:
        @app.teardown_appcontext
        def at_the_end(error: BaseException | None) -> None:
            calls.append(use(get_db()))

    late, early = bench.site(), bench.site(listen)
    listen(late.app)
    late.get("/own")
    assert late.in_use == 0
    early.get("/own")

    assert len(calls) == 2
    assert early.in_use == 0


# Requests that fail


@row
def an_error_handler(bench: Bench) -> None:
    site = bench.site()

    def view() -> NoReturn:
        site.use()
        raise LookupError

    @site.app.errorhandler(LookupError)
    def handle(error: LookupError) -> str:
        return str(site.use())

    site.add(view)
    assert site.get().status_code == 200

    assert len(site.seen) == 2
    assert site.handles == 1


@row
def abort_after_an_uncommitted_insert(bench: Bench) -> None:
    site = bench.site(MAX_SIZE=1)
    with site.pool.connection() as connection:
        fetch(connection, "CREATE OR REPLACE TABLE contexts (a INT)")

    def insert(number: int) -> None:
        fetch(get_db(), f"INSERT INTO contexts VALUES ({number})")

    def view() -> NoReturn:
        insert(1)
        get_db().commit()
        insert(2)
        site.use()
        abort(409)

    site.add(view)
    assert site.get().status_code == 409

    assert site.in_use == 0
    with site.pool.connection() as connection:
        assert fetch(connection, "SELECT a FROM contexts") == ((1,),)
        fetch(connection, "DROP TABLE contexts")


@row
def an_unhandled_exception(bench: Bench) -> None:
    site = bench.site()
    heard: list[int] = []

    def view() -> NoReturn:
        site.use()
        raise LookupError

    def listen(*args: Any, **kwargs: Any) -> None:
        heard.append(site.use())

    site.add(view)
    with got_request_exception.connected_to(listen, site.app):
        with raises(LookupError):
            site.get()
        assert site.in_use == 0
        site.app.config["PROPAGATE_EXCEPTIONS"] = False
        assert site.get().status_code == 500

    assert len(heard) == 2
    assert site.handles == 2


@row
def system_exit_in_a_view(bench: Bench) -> None:
    site = bench.site()

    def view() -> NoReturn:
        site.use()
        raise SystemExit

    site.add(view)
    with raises(SystemExit):
        site.get()

    assert site.returned == [True]


def fail(error: BaseException | None) -> NoReturn:
    raise ZeroDivisionError


def fail_at(*places: str) -> Setup:
    def setup(app: Flask) -> None:
        for place in places:
            getattr(app, place)(fail)

    return setup


def when_teardown_fails(bench: Bench, setup: Setup) -> list[Site]:
    """For somebody who was there before the extension, who came later, and for both."""
    sites = [bench.site(setup), bench.site(), bench.site(setup)]
    for site in sites[1:]:
        setup(site.app)
    for site in sites:
        # From 3.2 on it comes in a group.
        with raises(Exception):
            site.get("/own")
    return sites


@row
def a_failing_teardown_request(bench: Bench) -> None:
    for site in when_teardown_fails(bench, fail_at("teardown_request")):
        assert site.returned == [True]
        with site.app.app_context():
            with raises(Exception):
                site.get("/own")
        assert site.returned == [True, True]


@row
def a_failing_teardown_appcontext(bench: Bench) -> None:
    for site in when_teardown_fails(bench, fail_at("teardown_appcontext")):
        assert site.returned == [True]


@row
def failing_teardowns_of_both_kinds(bench: Bench) -> None:
    setup = fail_at("teardown_request", "teardown_appcontext")
    early, *others = when_teardown_fails(bench, setup)

    assert early.returned == [True]
    for site in others:
        # Ours come after those that fail, and up to Flask 3.1 not at all.
        bench.lost += not site.seen[0].returned
        site.seen.clear()


# Streams


def words_of_stream(site: Site, chunks: Callable[[], Iterator[str]]) -> list[str]:
    """Read a stream to its end."""
    site.add(lambda: stream_with_context(chunks()))
    with site.get() as response:
        return response.get_data(as_text=True).split()


@row
def a_stream(bench: Bench) -> None:
    site = bench.site()

    def chunks() -> Iterator[str]:
        for _ in range(3):
            yield f"{site.use()} "
            assert site.in_use == 1

    ids = words_of_stream(site, chunks)

    assert len(ids) == 3
    assert site.handles == len(set(ids)) == 1


@row
def a_context_that_ends_inside_of_a_stream(bench: Bench) -> None:
    site = bench.site()

    def chunks() -> Iterator[str]:
        for _ in range(2):
            yield f"{site.use()} "
            with site.app.app_context():
                site.use()
            assert site.in_use == 1

    ids = words_of_stream(site, chunks)

    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert site.handles == 3


@row
def contexts_in_contexts_inside_of_a_stream(bench: Bench) -> None:
    site = bench.site()

    def chunks() -> Iterator[str]:
        yield f"{site.use()} "
        with site.app.app_context(), site.app.app_context():
            pass
        with Flask("other").app_context(), site.app.app_context():
            pass
        yield f"{site.use()} "

    ids = words_of_stream(site, chunks)

    assert len(ids) == 2
    assert len(set(ids)) == site.handles == 1


@row
def a_stream_with_what_the_view_has_taken(bench: Bench) -> None:
    site = bench.site(MAX_SIZE=1)

    def chunks(taken: PooledConnection) -> Iterator[str]:
        # Since 3.1.2 the context is torn down when the view has returned, and again.
        early = taken.returned
        number = site.use()
        assert (get_db() is taken) == (not early)
        if early:
            # On the only connection there is now somebody else.
            with raises(ConnectionReturned):
                use(taken)
        else:
            assert use(taken) == number
        yield "fine"

    def view() -> Iterator[str]:
        site.use()
        return stream_with_context(chunks(get_db()))

    site.add(view)
    with site.get() as response:
        assert response.get_data() == b"fine"

    assert site.returned == [True, True]


def add_stream(site: Site) -> None:
    """Chunks which are the numbers of a connection that the view has not asked for."""
    site.add(lambda: stream_with_context(str(site.use()) for _ in range(3)))


@row
def a_stream_that_is_never_read(bench: Bench) -> None:
    site = bench.site()

    def view() -> Iterator[str]:
        return stream_with_context(str(number) for number in [site.use()])

    site.add(view)
    site.get().close()

    assert site.returned == [True]


@row
def a_stream_abandoned_by_the_client(bench: Bench) -> None:
    site = bench.site()
    add_stream(site)
    response = site.get()
    next(response.iter_encoded())
    assert site.in_use == 1

    response.close()

    assert site.returned == [True]


def drop_elsewhere(site: Site) -> list[str]:
    """Read one chunk, let another thread drop the rest; who is in two requests after?

    There Flask finds no context, and so tears down none. Here, where it was pushed, it
    stays for good up to Flask 3.1.
    """
    response = site.get()
    first = next(response.iter_encoded()).decode()
    with suppress(LookupError, RuntimeError):
        in_thread(response.close)
    return [first, site.get("/own").text, site.get("/own").text]


@row
def a_stream_dropped_on_another_thread(bench: Bench) -> None:
    site = bench.site()
    add_stream(site)

    ids = in_thread(lambda: drop_elsewhere(site))

    assert site.handles == 3
    assert ids[0] not in ids[1:]
    assert site.returned == [False, True, True]
    bench.lost = 1
    del site.seen[0]


@row
def a_dropped_stream_with_a_connection_of_its_own(bench: Bench) -> None:
    site = bench.site()

    def chunks() -> Iterator[str]:
        with site.db.connection() as connection:
            site.seen.append(connection)
            while True:
                yield str(use(connection))

    site.add(lambda: stream_with_context(chunks()))

    in_thread(lambda: drop_elsewhere(site))

    assert site.handles == 3
    assert site.returned == [True, True, True]


@row
def an_app_context_that_ends_on_another_thread(bench: Bench) -> None:
    calls: list[str] = []

    def listen(app: Flask) -> None:
        app.teardown_appcontext(lambda error: calls.append("called"))

    context = bench.site(listen).app.app_context()
    contextvars.copy_context().run(context.push)
    calls.clear()
    with suppress(LookupError, RuntimeError):
        in_thread(context.pop)
    assert calls == ["called"]


# Contexts in contexts


@row
def two_requests_inside_an_app_context(bench: Bench) -> None:
    site = bench.site()
    with site.app.app_context():
        site.get("/own")
        assert site.returned == [True]
        site.get("/own")
        assert site.returned == [True, True]

    assert site.handles == 2


@row
def get_db_around_a_request_and_in_it(bench: Bench) -> None:
    site = bench.site()
    with site.app.app_context():
        outer = str(site.use())
        assert site.get("/own").text != outer
        assert site.returned == [False, True]
        assert str(site.use()) == outer

    assert site.seen[0] is site.seen[2] is not site.seen[1]


@row
def a_client_in_a_with_block(bench: Bench) -> None:
    site = bench.site()
    with site.app.test_client() as client:
        client.get("/own")
        assert site.returned == [True]
        site.use()
        assert site.returned == [True, False]
        client.get("/own")
        assert site.returned == [True, True, True]
        site.use()
        assert site.in_use == 1

    assert site.handles == 4
    assert site.in_use == 0


@row
def a_redirect_that_is_followed(bench: Bench) -> None:
    site = bench.site()

    def view() -> Any:
        site.use()
        return redirect("/own")

    site.add(view)
    with site.app.test_client() as client:
        assert client.get("/", follow_redirects=True).status_code == 200
        assert site.returned == [True, True]

    assert site.handles == 2


@row
def a_request_inside_a_test_request_context(bench: Bench) -> None:
    site = bench.site()
    with site.app.test_request_context("/own"):
        outer = str(site.use())
        assert site.get("/own").text != outer
        assert site.returned == [False, True]
        assert str(site.use()) == outer

    assert site.handles == 2


@row
def a_request_inside_a_view(bench: Bench) -> None:
    site = bench.site()

    def view() -> str:
        outer = str(site.use())
        assert site.get("/own").text != outer
        assert site.returned == [False, True]
        assert str(site.use()) == outer
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.handles == 2


@row
def nested_app_contexts(bench: Bench) -> None:
    site = bench.site()
    with site.app.app_context():
        outer = site.use()
        with site.app.app_context():
            assert site.use() != outer
        assert site.returned == [False, True]
        assert site.use() == outer

    assert site.handles == 2


@row
def one_app_context_pushed_twice(bench: Bench) -> None:
    site = bench.site()
    context = site.app.app_context()
    with context:
        outer = site.use()
        with context:
            assert site.use() == outer
        assert site.returned == [False, False]
        assert site.use() == outer

    assert site.handles == 1


@row
def two_apps(bench: Bench) -> None:
    one, two = bench.site(), bench.site()

    def view() -> str:
        outer = str(one.use())
        assert two.get("/own").text != outer
        assert two.returned == [True]
        with two.app.app_context():
            assert str(two.use()) != outer
            assert one.get("/own").text != outer
            assert one.returned == [False, True]
            assert two.returned == [True, False]
        assert two.returned == [True, True]
        assert str(one.use()) == outer
        return "fine"

    one.add(view)
    assert one.get().text == "fine"

    assert one.handles == two.handles == 2


@row
def two_pools_of_one_app(bench: Bench) -> None:
    site = bench.site()
    second = MySQLPool(site.app)
    pools: list[Pool] = []

    def view() -> str:
        pools.append(second.pool())
        assert site.use() != use(second.get_db())
        assert site.db.get_db() is not second.get_db() is second.get_db()
        assert site.in_use == second.stats().in_use == 1
        second.close_db()
        assert not site.db.get_db().returned
        assert site.in_use == use_again(second) == 1
        with raises(RuntimeError):
            get_db()
        return "fine"

    def use_again(db: MySQLPool) -> int:
        use(db.get_db())
        return db.stats().in_use

    site.add(view)
    assert site.get().text == "fine"

    [pool] = pools
    assert pool.stats().in_use == 0
    assert pool.stats().idle == 1
    pool.close()


@row
def commands(bench: Bench) -> None:
    site = bench.site()
    runner = site.app.test_cli_runner()

    @site.app.cli.command("work")
    @with_appcontext
    def work() -> None:
        assert site.use() == site.use()
        assert site.in_use == 1

    @site.app.cli.command("fail")
    @with_appcontext
    def fail() -> NoReturn:
        site.use()
        raise LookupError

    assert runner.invoke(args=["work"]).exception is None
    assert site.returned == [True, True]
    assert isinstance(runner.invoke(args=["fail"]).exception, LookupError)
    assert site.returned == [True, True, True]
    assert site.handles == 2


# Threads

LOCK = "SELECT GET_LOCK('contexts', 10)"
UNLOCK = "SELECT RELEASE_LOCK('contexts')"


def await_statement(watcher: PooledConnection, number: int) -> None:
    """Until this connection is in the middle of a statement."""
    query = "SELECT 1 FROM information_schema.PROCESSLIST WHERE COMMAND = 'Query'"
    until(lambda: fetch(watcher, f"{query} AND ID = {number}"))


@row
def copy_current_request_context_to_a_thread(bench: Bench) -> None:
    site = bench.site()

    def view() -> str:
        outer = site.use()

        @copy_current_request_context
        def work() -> None:
            assert site.use() != outer
            assert site.use() == use(get_db())
            assert site.in_use == 2

        in_thread(work)
        assert site.returned == [False, True, True]
        assert site.use() == outer
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.handles == 2


@row
def a_thread_with_the_context_itself(bench: Bench) -> None:
    site = bench.site()

    def view() -> str:
        number = site.use()
        work = partial(contextvars.copy_context().run, fetch, get_db(), LOCK)
        with site.pool.connection() as watcher, ThreadPoolExecutor(1) as executor:
            fetch(watcher, LOCK)
            waits = executor.submit(work)
            await_statement(watcher, number)
            with raises(ConnectionShared):
                site.use()
            fetch(watcher, UNLOCK)
            assert waits.result(PATIENCE) == ((1,),)
        assert in_thread(partial(contextvars.copy_context().run, site.use)) == number
        assert site.use() == number
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.handles == 1


@row
def threads_that_ask_first_at_once(bench: Bench) -> None:
    site = bench.site()
    at_once = threading.Barrier(4)

    def work() -> PooledConnection:
        at_once.wait(PATIENCE)
        return get_db()

    def view() -> str:
        contexts = [contextvars.copy_context() for _ in range(at_once.parties)]
        with ThreadPoolExecutor(at_once.parties) as executor:
            jobs = [executor.submit(context.run, work) for context in contexts]
            site.seen.extend(job.result(PATIENCE) for job in jobs)
        assert site.in_use == 1
        return str(site.use())

    site.add(view)
    site.get()

    assert len(site.seen) == 5
    assert site.handles == 1


def need_asgiref() -> None:
    if find_spec("asgiref") is None:
        raise NotRun("asgiref is not installed")


@row
def an_async_view(bench: Bench) -> None:
    need_asgiref()
    site = bench.site()

    async def work() -> int:
        await asyncio.sleep(0)
        return site.use()

    async def view() -> str:
        number = await work()
        assert number == site.use()
        assert set(await asyncio.gather(work(), work())) == {number}
        assert site.in_use == 1
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert len(site.seen) == 4
    assert site.handles == 1


@row
def an_async_view_with_threads(bench: Bench) -> None:
    need_asgiref()
    site = bench.site()

    async def view() -> str:
        number = site.use()
        with site.pool.connection() as watcher:
            fetch(watcher, LOCK)
            waits = asyncio.create_task(asyncio.to_thread(fetch, get_db(), LOCK))
            await asyncio.to_thread(await_statement, watcher, number)
            with raises(ConnectionShared):
                site.use()
            fetch(watcher, UNLOCK)
            assert await waits == ((1,),)
        assert await asyncio.to_thread(site.use) == site.use() == number
        return "fine"

    site.add(view)
    assert site.get().text == "fine"

    assert site.handles == 1


# The program


@contextmanager
def listening(noise: list[str]) -> Iterator[None]:
    """Note what is logged, warned of, or raised in finalizers and threads."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: noise.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flask_mysqlpool")
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda caught: noise.append(repr(caught.exc_value))
    threading.excepthook = lambda caught: noise.append(repr(caught.exc_value))
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            yield
    finally:
        logger.removeHandler(handler)
        sys.unraisablehook, threading.excepthook = hooks


def outcome(function: Row, url: str) -> str:
    """What goes wrong in a row; nothing, if all is well."""

    def run() -> None:
        function(bench)
        assert not has_app_context(), "a context is left"

    # What the row before has left is not laid at the door of this one.
    gc.collect()
    bench = Bench(url)
    try:
        with listening(bench.noise):
            # No row finds the contexts that another one has left.
            contextvars.Context().run(run)
            bench.check()
        return ""
    except NotRun as reason:
        return f"{NOT_RUN}{reason}"
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return described(error)
    finally:
        bench.close()


def described(error: BaseException) -> str:
    """The error, and what here was the last to be executed."""
    frames = traceback.extract_tb(error.__traceback__)
    line = [frame for frame in frames if frame.filename == __file__][-1]
    return f"{type(error).__name__}: {error} (line {line.lineno}: {line.line})"


def main(arguments: list[str]) -> None:
    if arguments == ["--versions"]:
        for name, requirements in VERSIONS.items():
            print(name, *requirements)
        return
    [url] = arguments
    # What there is by now need not be looked at again by every row's collection.
    gc.freeze()
    rows = {name: outcome(function, url) for name, function in ROWS.items()}
    versions = {name: version(name) for name in ("flask", "werkzeug")}
    print(json.dumps({**versions, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
