"""The radar: what a request does to the database, counted, told and logged."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
from conftest import MakeApp, Sql, execute, extension
from flask import Flask, Response
from pymysql.cursors import Cursor, DictCursor, SSCursor
from werkzeug.test import TestResponse

from flask_mysqlpool import MySQLPool, RecordedQuery, get_db, get_recorded_queries
from flask_mysqlpool.extension.radar import Seen
from flask_mysqlpool.pool.sql.cursors import _RecordingCursor
from flask_mysqlpool.testing import rolled_back

#: The header without its times.
TIMING = re.compile(r'db;dur=(\d+\.\d);desc="(.+)", pool;dur=(\d+\.\d);desc="waited"')


@pytest.fixture
def posts(sql: Sql) -> None:
    """A table with an index on one of its two columns, and more rows than a few."""
    sql("DROP TABLE IF EXISTS posts")
    sql("CREATE TABLE posts (id INT PRIMARY KEY, a INT, b INT, KEY (b))")
    values = ", ".join(f"({n}, {n}, {n})" for n in range(500))
    sql(f"INSERT INTO posts VALUES {values}")


def serve(app: Flask, work: Callable[[], object]) -> TestResponse:
    """Answer one request, whose view does this work."""

    @app.get("/", endpoint="shop.index")
    def view() -> str:
        work()
        return "done"

    response = app.test_client().get("/")
    assert response.text == "done"
    return response


def by_number(times: int) -> Callable[[], object]:
    def work() -> None:
        with get_db().cursor() as cursor:
            for number in range(times):
                cursor.execute("SELECT a FROM posts WHERE id = %s", (number,))

    return work


# Off and on


@pytest.mark.one_engine
@pytest.mark.parametrize("settings", [{}, {"RADAR": False}, {"RADAR": None}])
def test_off_there_is_no_recorder_and_no_header(
    make_app: MakeApp, settings: dict[str, Any]
) -> None:
    app = make_app(**settings)
    if settings == {"RADAR": False}:
        app.debug = True
    kinds = []

    def work() -> None:
        assert extension(app).pool().recorder is None
        kinds.append(type(get_db().cursor()))

    response = serve(app, work)

    assert "Server-Timing" not in response.headers
    assert not issubclass(kinds[0], _RecordingCursor)
    assert app.after_request_funcs == {}


def test_debug_mode_switches_it_on_until_the_first_request(
    make_app: MakeApp, posts: None
) -> None:
    app = make_app()
    with app.app_context():
        execute(get_db(), "SELECT 1")  # the pool is made without a recorder
    app.debug = True

    with rolled_back(app):
        assert '"1 statement"' in serve(app, by_number(1)).headers["Server-Timing"]
    assert '"1 statement"' in app.test_client().get("/").headers["Server-Timing"]

    other = make_app()
    serve(other, by_number(1))
    other.debug = True
    assert "Server-Timing" not in other.test_client().get("/").headers


@pytest.mark.one_engine
def test_switched_on_late_it_counts_what_the_app_does_last(make_app: MakeApp) -> None:
    app = make_app()

    @app.after_request
    def own(response: Response) -> Response:
        execute(get_db(), "SELECT 1")
        return response

    app.debug = True

    assert '"1 statement"' in serve(app, lambda: None).headers["Server-Timing"]


@pytest.mark.one_engine
def test_debug_mode_at_init_app_is_enough(make_app: MakeApp) -> None:
    app = Flask("shop")
    app.config.from_mapping(make_app().config)
    app.debug = True
    MySQLPool(app)

    assert "Server-Timing" in serve(app, lambda: None).headers


# The header


def test_browsers_are_told_the_times(make_app: MakeApp, posts: None) -> None:
    app = make_app(RADAR=True)

    @app.after_request
    def own(response: Response) -> Response:
        response.headers["Server-Timing"] = "cache;dur=1"
        execute(get_db(), "SELECT 1")
        return response

    def work() -> None:
        execute(get_db(), "SELECT SLEEP(0.02)")

    first, ours = serve(app, work).headers.getlist("Server-Timing")

    assert first == "cache;dur=1"
    found = TIMING.fullmatch(ours)
    assert found is not None
    assert 20 <= float(found[1]) < 2000 and found[2] == "2 statements"
    assert float(found[3]) > 0  # the connect


def test_each_request_of_one_context_is_counted_for_itself(
    make_app: MakeApp, posts: None
) -> None:
    app = make_app(RADAR=True)
    with app.app_context():
        first = serve(app, by_number(1))
        second = app.test_client().get("/")

    for response in first, second:
        assert 'desc="1 statement"' in response.headers["Server-Timing"]


@pytest.mark.one_engine
def test_waiting_for_a_connection_counts(make_app: MakeApp) -> None:
    app = make_app(RADAR=True, MAX_SIZE=1)
    pool_is_full = threading.Event()

    def work() -> None:
        pool_is_full.set()
        get_db().ping()

    with app.app_context():
        pool = extension(app).pool()
    held = pool.connection()
    found = []
    thread = threading.Thread(target=lambda: found.append(serve(app, work)))
    thread.start()
    assert pool_is_full.wait(10)
    while not pool.stats().waiting:
        assert thread.is_alive()
    since = pool.stats().waited
    held.close()
    thread.join(10)

    told = TIMING.fullmatch(found[0].headers["Server-Timing"])
    assert told is not None
    assert float(told[3]) >= round(since * 1000, 1)
    assert told[2] == "0 statements"


@pytest.mark.one_engine
def test_two_extensions_of_one_app_share_one_header(
    make_app: MakeApp, posts: None
) -> None:
    app = make_app(RADAR=True)
    second = MySQLPool(app)
    first = next(db for db in app.extensions["mysqlpool"] if db is not second)

    def work() -> None:
        for db in first, second:
            execute(db.get_db(), "SELECT 1")

    [header] = serve(app, work).headers.getlist("Server-Timing")

    assert 'desc="2 statements"' in header


# The log


def test_a_request_that_is_fine_logs_nothing(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    serve(make_app(RADAR=True), by_number(10))

    assert caplog.messages == []


def test_a_statement_in_a_loop_is_logged_with_its_line(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    serve(make_app(RADAR=True), by_number(11))

    [record] = caplog.records
    assert (record.name, record.levelname) == ("flask_mysqlpool.queries", "WARNING")
    line = by_number.__code__.co_firstlineno + 4
    assert re.fullmatch(
        r"shop\.index: 11 statements in \d\.\d{3} s, waited \d\.\d{3} s:"
        r" 11 times SELECT a FROM posts WHERE id = %s"
        rf" \(at {re.escape(__file__)}:{line}\)",
        record.getMessage(),
    )


@pytest.mark.one_engine
def test_a_line_lists_five_and_tells_that_there_are_more(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        for number in range(6):
            execute(get_db(), f"SELECT a\nFROM posts WHERE a = {number}")

    serve(make_app(RADAR=True), work)

    [message] = caplog.messages
    assert message.count("no index used by SELECT a FROM posts") == 5
    assert message.endswith("; …")


def test_a_request_of_very_many_statements_keeps_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Text(str):  # to which a weak reference can be made
        pass

    monkeypatch.setattr("flask_mysqlpool.extension.radar.RECORDED", 5)
    found, texts = Seen(), list[ref[Text]]()
    for number in range(12):
        text = Text(f"SELECT {number}")
        texts.append(ref(text))
        found.keep(RecordedQuery(text, None, 0.0, None, 1, "a.py:1", number < 9))
    del text

    assert found.statements == 12
    assert [n for n, kept in enumerate(texts) if kept()] == [*range(5), *range(7, 12)]


@pytest.mark.one_engine
def test_a_request_that_fails_is_logged_too(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        execute(get_db(), "SELECT a FROM posts WHERE a = 1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(make_app(RADAR=True), work)

    assert "no index used by" in caplog.text


# Statements that use no index

NO_INDEX = [
    "SELECT a FROM posts WHERE a = 3",
    "SELECT p.id FROM posts p JOIN posts q ON q.a = p.b WHERE p.id = 3",
    "SELECT id FROM posts ORDER BY a LIMIT 2",
    "SELECT EXISTS(SELECT 1 FROM posts WHERE a = 3)",
    "UPDATE posts SET b = b + 1 WHERE a = 3",
    "DELETE FROM posts WHERE a = -1",
]
INDEX = [
    "SELECT 1",
    "SELECT NOW() FROM DUAL",
    "SELECT a FROM posts WHERE id = 3",
    "SELECT a FROM posts WHERE b = 3",
    "SELECT MAX(b) FROM posts",
    "SELECT id FROM posts WHERE id = 1 UNION SELECT id FROM posts WHERE id = 2",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 9)"
    " SELECT n FROM x",
    "SHOW TABLES",
    "SHOW VARIABLES LIKE 'x'",
    "DESCRIBE posts",
    "EXPLAIN SELECT a FROM posts WHERE a = 3",
    "SELECT table_name FROM information_schema.tables WHERE table_name = 'posts'",
    "UPDATE posts SET a = 1 WHERE id = 3",
    "INSERT INTO posts VALUES (1000, 1, 1)",
]


def recorded(app: Flask, statement: Any, cls: Any = None) -> RecordedQuery:
    """Execute a statement, and return what was recorded of it."""
    with app.app_context():
        with get_db().cursor(cls) as cursor:
            cursor.execute(statement)
            cursor.fetchall()
        return get_recorded_queries()[-1]


def test_the_server_tells_which_statements_use_no_index(
    make_app: MakeApp, posts: None, tells: bool
) -> None:
    app = make_app(RECORD_QUERIES=True)
    # The second time, the columns are known.
    for statement in [*NO_INDEX, *NO_INDEX, NO_INDEX[0].encode()]:
        assert recorded(app, statement).no_index is True, statement
    for statement in INDEX:
        assert recorded(app, statement).no_index is False, statement


class Own(Cursor):
    """Makes its rows one by one."""

    def _conv_row(self, row: Any) -> Any:
        return [*row]


@pytest.mark.parametrize("cls", [Cursor, DictCursor, Own])
def test_all_buffered_cursors_know_it(
    make_app: MakeApp, posts: None, cls: type[Cursor], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(RECORD_QUERIES=True)
    assert recorded(app, NO_INDEX[0], cls).no_index is True
    # The end comes with another read than the beginning.
    long = "SELECT a, REPEAT('x', 1000) FROM posts"
    assert recorded(app, long, cls).no_index is True
    assert recorded(app, f"{long} WHERE id < 40", cls).no_index is False

    # Results that PyMySQL reads itself.
    monkeypatch.setattr("flask_mysqlpool.pool.driver.results.MOST_COLUMNS", 0)
    assert recorded(app, "SELECT a AS x FROM posts WHERE a = 4", cls).no_index is True
    assert recorded(app, "SELECT a AS y FROM posts WHERE b = 4", cls).no_index is False


def test_it_is_not_known_of_a_stream_and_of_a_statement_that_fails(
    make_app: MakeApp, posts: None
) -> None:
    app = make_app(RECORD_QUERIES=True)
    assert recorded(app, NO_INDEX[0], SSCursor).no_index is None
    with app.app_context():
        with pytest.raises(Exception, match="nothing"):
            execute(get_db(), "SELECT 1 FROM nothing")
        assert get_recorded_queries()[-1].no_index is None


def test_a_table_that_is_read_whole_on_purpose_is_not_logged(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        execute(get_db(), "SELECT a FROM posts LIMIT 3")
        execute(get_db(), "SELECT a, 'where' FROM posts -- where it ends")
        assert get_recorded_queries() == []

    serve(make_app(RADAR=True), work)

    assert caplog.messages == []


@pytest.mark.one_engine
def test_what_has_several_readings_is_logged(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    query = r"SELECT a FROM posts WHERE a = '\'' OR a = '3'"
    serve(make_app(RADAR=True), lambda: execute(get_db(), query))

    [message] = caplog.messages
    assert f"no index used by {query}" in message.replace("\\\\", "\\")


def test_executemany_and_blocks_know_it(make_app: MakeApp, posts: None) -> None:
    app = make_app(RECORD_QUERIES=True)
    with app.app_context(), extension(app).transaction() as connection:
        cursor = connection.cursor()
        cursor.executemany("UPDATE posts SET b = 0 WHERE a = %s", [(1,), (2,)])
        cursor.executemany("UPDATE posts SET b = 0 WHERE id = %s", [(1,), (2,)])
        first, second = get_recorded_queries()

    assert (first.no_index, second.no_index) == (True, False)


@pytest.mark.one_engine
def test_statements_outside_requests_are_not_kept(
    make_app: MakeApp, posts: None, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(RADAR=True)
    with app.app_context():
        for _ in range(20):
            execute(get_db(), NO_INDEX[0])
        assert get_recorded_queries() == []

    assert caplog.messages == []


# The panel


def page_with_toolbar(app: Flask, work: Callable[[], object]) -> str:
    """Return a page whose view does this work, with the panel."""
    reason = "Flask-DebugToolbar is not installed"
    toolbar = pytest.importorskip("flask_debugtoolbar", reason=reason)
    panel = "flask_mysqlpool.contrib.debugtoolbar.RadarPanel"
    app.config |= {"SECRET_KEY": "x", "DEBUG_TB_PANELS": [panel]}
    app.config["DEBUG_TB_ENABLED"] = True
    toolbar.DebugToolbarExtension(app)

    @app.get("/")
    def view() -> str:
        work()
        return "<html><body></body></html>"

    return app.test_client().get("/").text


# The toolbar uses names that Flask 3.2 deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_panel_lists_the_statements(make_app: MakeApp, posts: None) -> None:
    def work() -> None:
        with get_db().cursor() as cursor:
            cursor.execute("SELECT '<script>' FROM posts WHERE a = %s", ("<b>",))
            for _ in range(11):
                cursor.execute("SELECT 7")

    page = page_with_toolbar(make_app(RADAR=True, LOG_PARAMETERS=True), work)

    assert "12 statements" in page
    assert "SELECT &#39;&lt;script&gt;&#39; FROM posts WHERE a = %s" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert page.count(f"<td>{__file__}:") == 12
    assert page.count("no index") == 1
    assert page.count("11 times") == 11


@pytest.mark.one_engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_panel_says_that_the_radar_is_off(make_app: MakeApp) -> None:
    page = page_with_toolbar(make_app(RADAR=False), lambda: None)

    assert "MYSQLPOOL_RADAR is off" in page
