"""Answers for what the server refuses, where the author or the operator can help."""

from __future__ import annotations

from flask import Flask, current_app, render_template
from flask.typing import ResponseReturnValue
from pymysql.constants import ER
from pymysql.err import DataError, ProgrammingError


def init_app(app: Flask) -> None:
    app.register_error_handler(DataError, explain)
    app.register_error_handler(ProgrammingError, explain)


def explain(error: DataError | ProgrammingError) -> ResponseReturnValue:
    if error.args[0] == ER.DATA_TOO_LONG:
        return render_template("error.html", message=error.args[1]), 400
    if error.args[0] == ER.NO_SUCH_TABLE:
        current_app.logger.error("%s", error)
        hint = "There are no tables yet. Run: flask --app example_blog init-db"
        return render_template("error.html", message=hint), 503
    raise error
