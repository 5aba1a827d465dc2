from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pymysql.cursors import DictCursor
from werkzeug.test import TestResponse

from example_app import create_app
from example_app.database import db, init_db
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.testing.fixtures import mysql_rollback as mysql_rollback

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
CURL = {"Accept": "*/*"}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def threads_of_app(mysql_server: LocalServer) -> set[int]:
    with mysql_server.connect() as connection, connection.cursor(DictCursor) as cursor:
        cursor.execute("SHOW PROCESSLIST")
        return {row["Id"] for row in cursor if row["User"] == mysql_server.user}


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[LocalServer]:
    with LocalServer(database="people") as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the settings of the developer who runs the tests.

    And the system's certificates, which PyMySQL loads for each connection: that takes
    35 ms.
    """
    none = tmp_path_factory.mktemp("certificates") / "none.pem"
    none.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FLASK_")]:
            patch.delenv(name)
        patch.setenv("SSL_CERT_FILE", str(none))
        yield


@pytest.fixture
def bare_app(mysql_server: LocalServer, plain_environment: None) -> Iterator[Flask]:
    """Yield the app on a database without the table."""
    with mysql_server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS people.person")
    # A server lists connections for a moment after the client has closed them.
    until(lambda: not threads_of_app(mysql_server))
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, "TESTING": True})
    yield app
    with app.app_context():
        db.close_pool()


@pytest.fixture
def app(bare_app: Flask) -> Flask:
    with bare_app.app_context():
        init_db()
    return bare_app


class Browser:
    """A client that asks for pages, and sends forms as the pages have them."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def get(self, path: str) -> TestResponse:
        return self.client.get(path, headers=BROWSER)

    def send(self, page: str, action: str, **fields: str) -> TestResponse:
        """Send a form of the page, and follow where that leads."""
        text = self.get(page).text
        assert f'action="{action}"' in text
        [token, *_] = re.findall(r'name="csrf_token" value="([^"]+)"', text)
        data = {"csrf_token": token, **fields}
        return self.client.post(
            action, data=data, headers=BROWSER, follow_redirects=True
        )


@pytest.fixture
def browser(client: FlaskClient) -> Browser:
    return Browser(client)
