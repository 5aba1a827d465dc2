"""What the server refuses, and how pages say so; on sqlite3 there was none of this."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient


def test_a_name_that_is_too_long(client: FlaskClient) -> None:
    response = client.post("/register", data={"name": "x" * 51, "password": "x"})

    assert response.status_code == 400
    assert "too long for column &#39;name&#39;" in response.text


@pytest.mark.parametrize("field", ["title", "body"])
def test_a_text_that_is_too_long(ada: FlaskClient, field: str) -> None:
    post = {"title": "Engines", "body": "", field: "x" * 65536}

    response = ada.post("/new", data=post)

    assert response.status_code == 400
    assert f"too long for column &#39;{field}&#39;" in response.text
    assert "There are no posts yet." in ada.get("/").text


def test_without_tables_pages_name_the_command(bare_app: Flask) -> None:
    response = bare_app.test_client().get("/")

    assert response.status_code == 503
    assert "Run: flask --app example_blog init-db" in response.text
