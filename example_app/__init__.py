"""A people directory: what a Flask app on ``flask_mysqlpool`` looks like.

Read this module, ``database.py`` and ``people.py``. ``web.py`` answers in JSON or HTML;
``demo`` serves the demonstration, and is not part of such an app.

``python -m example_app`` runs it with a database of its own. On yours::

    export FLASK_MYSQLPOOL_URL=mysql://user:password@127.0.0.1:3306/people
    flask --app example_app init-db
    flask --app example_app run
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import click
from flask import Flask
from flask.cli import with_appcontext
from pymysql.err import MySQLError

from flask_mysqlpool import PoolError
from flask_mysqlpool.monitor import create_monitor, is_local

from . import database, demo, people, web


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Create the app, configured by the environment (``FLASK_…``) and by ``config``.

    It connects to nothing yet. Raises :exc:`~flask_mysqlpool.ConfigError`.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        # Enough for one process; several must share one, from the environment.
        SECRET_KEY=secrets.token_hex(),
        # Cookies are shared by all ports: "session" may be another local app's.
        SESSION_COOKIE_NAME="people_session",
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=16 * 1024,
        # Rows whose cells have names and positions.
        MYSQLPOOL_CURSORCLASS="RowCursor",
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    database.db.init_app(app)
    web.init_app(app)
    app.register_blueprint(people.blueprint)
    demo.init_app(app)
    app.register_blueprint(create_monitor(authorize=is_local, control=True))
    app.cli.add_command(init_db)
    return app


@click.command("init-db")
@with_appcontext
def init_db() -> None:
    """Create the table person, and fill it if it is empty."""
    try:
        count = database.init_db()
    except (MySQLError, PoolError) as error:
        raise click.ClickException(database.describe(error)) from None
    click.echo(f"The table person holds {count} people.")
