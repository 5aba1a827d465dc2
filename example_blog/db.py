"""The database: its schema, and the command that creates it."""

from __future__ import annotations

import click
from flask import Flask, current_app, render_template
from flask.cli import with_appcontext
from flask.typing import ResponseReturnValue
from pymysql.constants import ER
from pymysql.err import DataError, ProgrammingError

from flask_mysqlpool import MySQLPool, get_db

db = MySQLPool()


def init_app(app: Flask) -> None:
    db.init_app(app)
    app.register_error_handler(DataError, explain)
    app.register_error_handler(ProgrammingError, explain)
    app.cli.add_command(init_db)


@click.command("init-db")
@with_appcontext
def init_db() -> None:
    """Create the tables anew: authors and posts that exist are deleted."""
    with current_app.open_resource("schema.sql") as file:
        get_db().executescript(file.read())
    click.echo("The tables author and post are there, and empty.")


def explain(error: DataError | ProgrammingError) -> ResponseReturnValue:
    """Answer what the server refuses, where the author or the operator can help."""
    if error.args[0] == ER.DATA_TOO_LONG:
        return render_template("error.html", message=error.args[1]), 400
    if error.args[0] == ER.NO_SUCH_TABLE:
        current_app.logger.error("%s", error)
        hint = "There are no tables yet. Run: flask --app example_blog init-db"
        return render_template("error.html", message=hint), 503
    raise error
