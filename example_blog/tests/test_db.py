"""The command init-db."""

from __future__ import annotations

from flask import Flask
from flask.testing import FlaskClient


def init_db(app: Flask) -> str:
    result = app.test_cli_runner().invoke(args=["init-db"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def register(client: FlaskClient) -> None:
    client.post("/register", data={"name": "Ada", "password": "a secret"})


def test_init_db_creates_empty_tables(bare_app: Flask) -> None:
    assert init_db(bare_app) == "The tables author and post are there, and empty.\n"
    assert "There are no posts yet." in bare_app.test_client().get("/").text


def test_init_db_again_deletes_authors_and_posts(bare_app: Flask) -> None:
    init_db(bare_app)
    client = bare_app.test_client()
    register(client)
    client.post("/new", data={"title": "Engines", "body": "They weave."})
    assert "Engines" in client.get("/").text

    init_db(bare_app)

    assert "There are no posts yet." in client.get("/").text
    assert client.get("/new").status_code == 401
