from __future__ import annotations

from threading import BoundedSemaphore

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_app import create_app
from example_app.database import db
from example_app.demo import trouble
from flask_mysqlpool.testing import LocalServer

from .conftest import BROWSER, Browser, until

STRANGER = {"REMOTE_ADDR": "192.0.2.1"}


def is_quiet() -> bool:
    """Return whether all threads that make trouble have ended."""
    return trouble._places._value == trouble.MOST


@pytest.fixture
def app(app: Flask) -> Flask:
    until(is_quiet)
    return app


def test_connections_are_held_and_the_monitor_names_their_holder(
    app: Flask, client: FlaskClient
) -> None:
    sent = {"connections": 3, "seconds": 1}
    response = client.post("/trouble/hold", json=sent)
    assert response.get_json()["message"] == "3 connections are held for 1 seconds."

    def holders() -> list[str]:
        report = client.get("/mysqlpool/status.json").get_json()
        held = report["pools"]["default"]["holders"]
        return [holder["endpoint"] for holder in held]

    until(lambda: holders() == ["trouble.hold"] * 3)
    until(lambda: holders() == [] and is_quiet())


def test_an_exhausted_pool_can_be_freed_by_force(
    app: Flask, client: FlaskClient
) -> None:
    client.post("/trouble/hold", json={"connections": 10, "seconds": 15})
    until(lambda: db.stats().in_use == 10)

    ended = client.post("/trouble/kill", json={}).get_json()["message"]

    assert ended == "The server has ended 10 connections."
    until(lambda: db.stats().in_use == 0 and is_quiet())
    assert client.get("/person/first").status_code == 200


def test_a_flood_is_served_by_a_few_connections(
    app: Flask, client: FlaskClient
) -> None:
    before = db.stats().checkouts
    client.post("/trouble/flood", json={"visitors": 20, "requests": 2})
    until(is_quiet)

    stats = db.stats()
    assert stats.checkouts - before == 40 and stats.timeouts == 0
    assert stats.size <= stats.max_size == 10


def test_the_buttons_are_forms_that_cannot_be_forged(
    app: Flask, browser: Browser
) -> None:
    page = browser.send("/trouble/", "/trouble/hold", connections="1", seconds="1")
    assert "1 connections are held for 1 seconds." in page.text
    assert browser.send("/trouble/", "/trouble/kill").status_code == 200
    for action in ("hold", "flood", "kill"):
        response = browser.client.post(f"/trouble/{action}", data={}, headers=BROWSER)
        assert response.status_code == 403
    until(is_quiet)


@pytest.mark.parametrize("value", [0, -1, 21, 10**9, "x", "", None, [], {}])
def test_what_is_asked_for_is_bounded(
    app: Flask, client: FlaskClient, value: object
) -> None:
    response = client.post("/trouble/hold", json={"connections": value})
    assert response.status_code == 400
    assert "from 1 to 20" in response.get_json()["message"]
    assert client.post("/trouble/hold", json=[]).status_code == 400


def test_no_more_threads_than_there_are_places(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "_places", BoundedSemaphore(2))
    sent = {"connections": 5, "seconds": 1}
    first = client.post("/trouble/hold", json=sent)
    assert first.get_json()["message"].startswith("2 connections")
    second = client.post("/trouble/hold", json=sent)
    assert second.status_code == 429
    places = trouble._places
    until(lambda: places._value == 2)


def test_trouble_and_monitor_are_for_this_machine_only(app: Flask) -> None:
    client = app.test_client()
    for path in ("/trouble/", "/trouble/slow", "/mysqlpool/", "/mysqlpool/status.json"):
        assert client.get(path).status_code == 200
        response = client.get(path, environ_overrides=STRANGER)
        assert response.status_code == 403
    for action in ("hold", "flood", "kill"):
        response = client.post(
            f"/trouble/{action}", json={}, environ_overrides=STRANGER
        )
        assert response.status_code == 403


def test_the_navigation_leads_there(app: Flask, browser: Browser) -> None:
    links = 'href="/trouble/"', 'href="/mysqlpool/"'
    page = browser.get("/").text
    assert all(link in page for link in links)
    page = browser.client.get("/", headers=BROWSER, environ_overrides=STRANGER).text
    assert not any(link in page for link in links)


def test_the_monitor_shows_no_secret(mysql_server: LocalServer) -> None:
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, "TESTING": True})
    client = app.test_client()
    for path in ("/mysqlpool/", "/mysqlpool/status.json"):
        response = client.get(path)
        assert response.status_code == 200
        assert mysql_server.password not in response.text
