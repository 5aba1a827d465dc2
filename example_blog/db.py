"""The database: its schema, and the command that creates it."""

from __future__ import annotations

import click
from flask import Flask, current_app
from flask.cli import with_appcontext

from flask_mysqlpool import MySQLPool

db = MySQLPool()
get_db = db.get_db


def init_app(app: Flask) -> None:
    db.init_app(app)
    app.cli.add_command(init_db)


@click.command("init-db")
@with_appcontext
def init_db() -> None:
    """Create the tables anew: authors and posts that exist are deleted."""
    with current_app.open_resource("schema.sql") as file:
        get_db().executescript(file.read())
    click.echo("The tables author and post are there, and empty.")
