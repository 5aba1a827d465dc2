from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest
from flask.testing import FlaskClient

WOVEN = {"title": "Engines", "body": "They weave\nalgebra."}


def write(author: FlaskClient, title: str) -> str:
    """Write a post, and return its path."""
    author.post("/new", data={"title": title, "body": ""})
    # The newest is the first.
    found = re.search(r'href="(/\d+)"', author.get("/").text)
    assert found
    return found[1]


def titles(client: FlaskClient) -> list[str]:
    return re.findall(r"<h2>(.*)</h2>", client.get("/").text)


def test_all_can_read_a_post(ada: FlaskClient) -> None:
    assert ada.get("/new").status_code == 200
    assert ada.post("/new", data=WOVEN).location == "/"

    text = ada.application.test_client().get("/").text

    assert "<h2>Engines</h2>" in text
    assert "They weave\nalgebra." in text
    assert "Edit" not in text


def test_a_post_has_the_time_of_utc(ada: FlaskClient) -> None:
    write(ada, "Engines")

    [shown] = re.findall(r"Ada, (\d{4}-\d\d-\d\d \d\d:\d\d)", ada.get("/").text)

    passed = datetime.now(timezone.utc) - datetime.fromisoformat(f"{shown}+00:00")
    assert timedelta(0) <= passed < timedelta(minutes=3)


def test_the_newest_post_is_the_first(ada: FlaskClient, grace: FlaskClient) -> None:
    write(ada, "Engines")
    write(grace, "Compilers")

    assert titles(ada) == ["Compilers", "Engines"]


def test_an_author_changes_a_post(ada: FlaskClient) -> None:
    path = write(ada, "Engine")
    assert 'value="Engine"' in ada.get(path).text

    assert ada.post(path, data=WOVEN).location == "/"

    assert titles(ada) == ["Engines"]
    assert "They weave\nalgebra.</textarea>" in ada.get(path).text


def test_an_author_deletes_a_post(ada: FlaskClient) -> None:
    path = write(ada, "Engines")
    write(ada, "Numbers")

    assert ada.post(f"{path}/delete").location == "/"

    assert titles(ada) == ["Numbers"]
    assert ada.get(path).status_code == 404


def test_a_title_is_required(ada: FlaskClient) -> None:
    path = write(ada, "Engines")
    for place in "/new", path:
        response = ada.post(place, data={"title": " ", "body": "What I wrote"})

        assert response.status_code == 400
        assert "A title is required." in response.text
        # What was typed is still in the form.
        assert "What I wrote" in response.text
    assert ada.post("/new", data={"title": "Engines"}).status_code == 400
    assert titles(ada) == ["Engines"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("POST", "/delete")],
)
def test_who_may_do_what_with_a_post(
    ada: FlaskClient, grace: FlaskClient, method: str, path: str
) -> None:
    post = write(ada, "Engines")
    stranger = ada.application.test_client()

    def status(client: FlaskClient, post: str) -> int:
        data = {"title": "Changed", "body": ""} if method == "POST" else None
        return client.open(post + path, method=method, data=data).status_code

    assert status(stranger, post) == 401
    assert status(grace, post) == 403
    assert status(grace, "/999999") == 404
    assert titles(ada) == ["Engines"]
    assert status(ada, post) == (200 if method == "GET" else 303)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_authors_can_write(client: FlaskClient, method: str) -> None:
    response = client.open("/new", method=method, data=WOVEN)

    assert response.status_code == 401
    assert "Log in first." in response.text
    assert titles(client) == []


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "' OR '1' = '1", "100 %s", "Zoë 🧵", "\\"]
)
def test_any_text_is_stored_and_shown_as_text(ada: FlaskClient, text: str) -> None:
    ada.post("/new", data={"title": text, "body": text})

    page = ada.get("/").text

    assert "<script>" not in page
    shown = text.replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(shown) == 2
