"""A server for all tests, with one database; each test is rolled back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.security import generate_password_hash

from example_blog import create_app
from example_blog.db import db, get_db
from flask_mysqlpool.testing import LocalServer, ServerNotFound
from flask_mysqlpool.testing.fixtures import mysql_rollback as mysql_rollback

#: MySQL is where scripts/mysql-server has put it, or installed, or else skipped.
ROOTS = {
    "mariadb": os.environ.get("FLASK_MYSQLPOOL_MARIADB_ROOT"),
    "mysql": os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT"),
}
PASSWORD = "a secret"
#: One round, as the tests log in often.
HASHED = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")


@pytest.fixture(scope="session", params=ROOTS)
def mysql_server(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    try:
        server = LocalServer(engine=request.param, root=ROOTS[request.param])
    except ServerNotFound as error:
        if request.param == "mariadb":
            raise
        pytest.skip(str(error))
    with server:
        # Posts have the time of UTC, wherever the server is.
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET GLOBAL time_zone = '+05:00'")
        yield server


@contextmanager
def app_on(server: LocalServer, database: str) -> Iterator[Flask]:
    """Create the app on a database without tables."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {database}")
        cursor.execute(f"CREATE DATABASE {database}")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FLASK_")]:
            patch.delenv(name)
        place = {"MYSQLPOOL_URL": server.url, "MYSQLPOOL_DATABASE": database}
        app = create_app({"TESTING": True, **place})
    yield app
    with app.app_context():
        db.close_pool()


@pytest.fixture
def bare_app(mysql_server: LocalServer) -> Iterator[Flask]:
    """Yield the app before init-db."""
    with app_on(mysql_server, "bare") as app:
        yield app


@pytest.fixture(scope="session")
def app(mysql_server: LocalServer) -> Iterator[Flask]:
    with app_on(mysql_server, "blog") as app:
        app.test_cli_runner().invoke(args=["init-db"], catch_exceptions=False)
        yield app


@pytest.fixture
def client(app: Flask, mysql_rollback: None) -> FlaskClient:
    """Return a client that is not logged in; Ada and Grace are registered."""
    for name in "Ada", "Grace":
        get_db().execute(
            "INSERT INTO author (name, password) VALUES (%s, %s)", [name, HASHED]
        )
    get_db().commit()
    return app.test_client()


@pytest.fixture
def ada(client: FlaskClient) -> FlaskClient:
    return logged_in(client, "Ada")


@pytest.fixture
def grace(client: FlaskClient) -> FlaskClient:
    return logged_in(client.application.test_client(), "Grace")


def logged_in(client: FlaskClient, name: str) -> FlaskClient:
    response = client.post("/login", data={"name": name, "password": PASSWORD})
    assert response.location == "/"
    return client
