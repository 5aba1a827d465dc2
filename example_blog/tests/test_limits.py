"""Texts that sqlite3 takes, and a column of MySQL does not."""

from __future__ import annotations

import pytest
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
