"""Visits to the monitor."""

from __future__ import annotations

import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_mysqlpool.monitor import create_monitor

OURS = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}


def allow() -> bool:
    return True


def monitored(app: Flask, **options: Any) -> FlaskClient:
    """A client of the app, which has a monitor that lets everybody in."""
    app.secret_key = "a secret key"
    app.register_blueprint(create_monitor(**{"authorize": allow} | options))
    return app.test_client()


def csrf(client: FlaskClient, **headers: str) -> str:
    page = client.get("/mysqlpool/", headers=headers).text
    [token] = re.findall(r'data-csrf="(\w+)"', page)
    return str(token)


def order(
    client: FlaskClient,
    token: str | None,
    action: object = "reset",
    bind: object = "default",
    **headers: str | None,
) -> TestResponse:
    sent: dict[str, str | None] = {"X-CSRF-Token": token, **OURS, **headers}
    return client.post(
        "/mysqlpool/control",
        json={"action": action, "bind": bind},
        headers={k: v for k, v in sent.items() if v is not None},
    )
