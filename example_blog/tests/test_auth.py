from __future__ import annotations

from typing import Any

import pytest
from flask import session
from flask.testing import FlaskClient

from example_blog.db import get_db

from .conftest import PASSWORD


def test_who_registers_is_logged_in_and_can_log_in_again(client: FlaskClient) -> None:
    assert client.get("/register").status_code == 200
    joan = {"name": " Joan ", "password": "long enough"}
    for path in "/register", "/login":
        response = client.post(path, data=joan, follow_redirects=True)

        assert "Log out Joan" in response.text
        client.post("/logout")
    query = "SELECT password FROM author WHERE name = 'Joan'"
    stored: Any = get_db().execute(query).fetchone()
    assert stored["password"].startswith("scrypt:")


@pytest.mark.parametrize("name", ["", "  "])
@pytest.mark.parametrize("password", ["", "long enough"])
def test_a_name_and_a_password_are_required(
    client: FlaskClient, name: str, password: str
) -> None:
    response = client.post("/register", data={"name": name, "password": password})

    assert response.status_code == 400
    assert "are required" in response.text


@pytest.mark.parametrize("path", ["/register", "/login"])
def test_a_field_that_is_not_sent_is_a_bad_request(
    client: FlaskClient, path: str
) -> None:
    assert client.post(path, data={"name": "Joan"}).status_code == 400


def test_a_name_is_taken_once(client: FlaskClient) -> None:
    response = client.post("/register", data={"name": "Ada", "password": "x"})

    assert response.status_code == 409
    assert "The name Ada is taken." in response.text
    assert "Log out" not in client.get("/").text


def test_names_differ_by_case(client: FlaskClient) -> None:
    response = client.post("/register", data={"name": "ada", "password": "x"})

    assert response.location == "/"
    assert "Log out ada" in client.get("/").text


def test_login_and_logout(client: FlaskClient) -> None:
    assert client.get("/login").status_code == 200
    ada = {"name": "Ada", "password": PASSWORD}

    assert client.post("/login", data=ada).location == "/"
    with client:
        assert "Log out Ada" in client.get("/").text
        assert list(session) == ["author"]
        assert client.post("/logout").location == "/"
        assert list(session) == []
    assert "Log out" not in client.get("/").text


@pytest.mark.parametrize(
    ("name", "password"), [("Ada", "wrong"), ("ada", PASSWORD), ("Joan", PASSWORD)]
)
def test_a_wrong_name_or_password(
    client: FlaskClient, name: str, password: str
) -> None:
    response = client.post("/login", data={"name": name, "password": password})

    assert response.status_code == 401
    assert "The name or the password is wrong." in response.text
    assert "Log out" not in client.get("/").text


def test_who_logs_in_is_never_sent_elsewhere(client: FlaskClient) -> None:
    ada = {"name": "Ada", "password": PASSWORD, "next": "//elsewhere.example"}

    response = client.post("/login?next=https://elsewhere.example", data=ada)

    assert response.location == "/"


def test_an_author_who_is_gone_is_logged_out(ada: FlaskClient) -> None:
    get_db().execute("DELETE FROM author WHERE name = 'Ada'")
    get_db().commit()

    assert ada.get("/new").status_code == 401
