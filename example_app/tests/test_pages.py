from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pymysql.cursors import DictCursor
from pymysql.err import OperationalError

from example_app import create_app
from example_app.database import db
from example_app.demo.connections import kill, kill_own
from flask_mysqlpool.testing import LocalServer

from .conftest import BROWSER, Browser, threads_of_app, until


def hold(app: Flask, number: int) -> None:
    """Make the pool open that many connections."""
    barrier = Barrier(number, timeout=10)

    def hold_one() -> None:
        with app.app_context():
            db.get_db()
            barrier.wait()

    with ThreadPoolExecutor(number) as threads:
        for done in [threads.submit(hold_one) for _ in range(number)]:
            done.result()


def test_the_front_page_links_to_everything(browser: Browser) -> None:
    page = browser.get("/").text
    for path in ("/person/all", "/person/first", "/timeout"):
        assert f'href="{path}"' in page
        assert browser.get(path).status_code == 200


def test_the_front_page_shows_the_pool(app: Flask, browser: Browser) -> None:
    hold(app, 3)
    assert "0 in use, 3 idle, 0 being opened, of at most 10" in browser.get("/").text
    pool = browser.client.get("/").get_json()["pool"]
    assert (pool["idle"], pool["max_size"], pool["opened"]) == (3, 10, 3)


@pytest.mark.parametrize(
    "path", ["/", "/person/all", "/person/first", "/timeout", "/x"]
)
def test_pages_need_no_foreign_host(browser: Browser, path: str) -> None:
    response = browser.get(path)
    for address in re.findall(r'(?:href|src|action)="([^"]*)"', response.text):
        assert address.startswith("/")
        assert not address.startswith("//")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    style = browser.client.get("/static/style.css")
    assert style.status_code == 200
    assert "//" not in style.text
    assert "@import" not in style.text
    style.close()


def test_looking_at_break_it_breaks_nothing(
    mysql_server: LocalServer, app: Flask, browser: Browser
) -> None:
    hold(app, 2)
    before = threads_of_app(mysql_server)
    assert "End all connections" in browser.get("/timeout").text
    assert "message" in browser.client.get("/timeout").get_json()
    assert threads_of_app(mysql_server) == before


def test_after_break_it_everything_works(
    mysql_server: LocalServer, app: Flask, browser: Browser
) -> None:
    hold(app, 4)
    before = threads_of_app(mysql_server)
    assert len(before) == 4
    page = browser.send("/timeout", "/timeout")
    assert page.status_code == 200
    assert re.findall(r"every connection of this app: (\d+), counting", page.text) == [
        "4"
    ]
    for _ in range(20):
        assert browser.client.get("/person/all").status_code == 200
    assert not threads_of_app(mysql_server) & before


def test_break_it_again_and_again_by_json(
    mysql_server: LocalServer, app: Flask, client: FlaskClient
) -> None:
    for _ in range(10):
        hold(app, 3)
        # The server lists a connection that was killed for a moment more.
        until(lambda: len(threads_of_app(mysql_server)) == 3)
        response = client.post("/timeout", json={})
        assert response.status_code == 200
        assert response.get_json()["ended"] == 3
        for _ in range(3):
            assert client.get("/person/first").status_code == 200


def test_break_it_by_curl_without_json_says_how(client: FlaskClient) -> None:
    response = client.post("/timeout")
    assert response.status_code == 403
    assert "Content-Type: application/json" in response.get_json()["message"]


def test_break_it_spares_other_users(
    mysql_server: LocalServer, client: FlaskClient
) -> None:
    with mysql_server.connect(database="people") as other, other.cursor() as cursor:
        assert client.post("/timeout", json={}).get_json()["ended"] == 1
        cursor.execute("SELECT 1")


def test_kill_tells_what_had_ended(app: Flask) -> None:
    with db.connection() as connection, connection.cursor(DictCursor) as cursor:
        assert not kill(cursor, 2**31)


def test_an_unexpected_error_of_kill_is_no_success() -> None:
    class Refusing(DictCursor):
        def __init__(self) -> None:
            pass

        def execute(self, query: object, args: object = None) -> int:
            raise OperationalError(1095, "You are not owner of thread")

        def close(self) -> None:
            pass

        __del__ = close

    with pytest.raises(OperationalError, match="1095"):
        kill(Refusing(), 1)
    with pytest.raises(OperationalError, match="1095"):
        kill_own(Refusing())


def test_errors_are_pages_or_json(browser: Browser) -> None:
    response = browser.get("/nowhere")
    assert (response.status_code, response.mimetype) == (404, "text/html")
    response = browser.client.get("/nowhere")
    assert (response.status_code, response.mimetype) == (404, "application/json")
    assert response.get_json()["error"] == "Not Found"
    response = browser.client.delete("/timeout")
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]


def test_a_missing_table_says_what_to_do(bare_app: Flask) -> None:
    client = bare_app.test_client()
    response = client.get("/person/all")
    assert response.status_code == 503
    assert "init-db" in response.get_json()["message"]
    assert "init-db" in client.get("/person/all", headers=BROWSER).text


def test_a_crowded_pool_is_a_page_that_says_when_to_retry(
    mysql_server: LocalServer,
) -> None:
    narrow = {"MYSQLPOOL_MAX_SIZE": 1, "MYSQLPOOL_TIMEOUT": 0.1}
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, **narrow})
    with app.app_context():
        with db.connection(timeout=10):
            response = app.test_client().get("/person/all", headers=BROWSER)
        db.close_pool()
    assert (response.status_code, response.mimetype) == (503, "text/html")
    assert "Retry-After" in response.headers


def test_a_dead_server_is_a_page_and_tells_no_secret(mysql_server: LocalServer) -> None:
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, "MYSQLPOOL_PORT": 1})
    for headers in (BROWSER, {}):
        response = app.test_client().get("/person/all", headers=headers)
        assert response.status_code == 503
        assert "Service Unavailable" in response.text
        assert mysql_server.password not in response.text
