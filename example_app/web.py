"""What all pages share: JSON or HTML, errors, and forms protected against CSRF."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Flask, Response, abort, current_app, jsonify, request, session
from flask import render_template as render
from flask.json.provider import DefaultJSONProvider
from flask.typing import ResponseReturnValue
from pymysql.constants import ER
from pymysql.err import ProgrammingError
from werkzeug.exceptions import HTTPException, ServiceUnavailable

TOKEN = "csrf_token"

#: No foreign hosts, no scripts, and no frames: those would allow clickjacking.
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class ReadableJSON(DefaultJSONProvider):
    """JSON for people with curl: fields in their order, names in their letters."""

    sort_keys = False
    ensure_ascii = False


def init_app(app: Flask) -> None:
    app.json = ReadableJSON(app)
    app.before_request(refuse_forged_forms)
    app.after_request(add_headers)
    app.register_error_handler(HTTPException, show_error)
    app.register_error_handler(ProgrammingError, show_missing_table)
    app.jinja_env.globals.update(csrf_token=csrf_token)


def wants_page() -> bool:
    """Return whether to answer with HTML, as browsers want it, instead of JSON.

    ``?format=`` decides; without it, JSON is answered by JSON, and otherwise the
    header Accept counts, where curl's ``*/*`` stands for JSON.
    """
    wanted = request.args.get("format")
    if wanted is not None:
        return wanted == "html"
    if request.is_json:
        return False
    accepts = request.accept_mimetypes
    return accepts.best_match(["application/json", "text/html"]) == "text/html"


def reply(
    template: str, data: object, status: int = 200, **context: Any
) -> ResponseReturnValue:
    """Return ``data`` as JSON, or the page made of ``context``."""
    if wants_page():
        return render(template, **context), status
    return jsonify(data), status


def csrf_token() -> str:
    """Return the session's token, which forms send back and no other site knows."""
    token: str = session.setdefault(TOKEN, secrets.token_urlsafe())
    return token


def refuse_forged_forms() -> None:
    """Refuse forms without the session's token, against CSRF.

    JSON needs none: a browser sends it to another site only with that site's consent.
    """
    if request.method != "POST" or request.is_json:
        return
    expected = session.get(TOKEN, "")
    sent = request.form.get(TOKEN, "")
    if not expected or not secrets.compare_digest(sent.encode(), expected.encode()):
        abort(
            403,
            "This form has no valid token: reload its page and send it again. Without a"
            " browser, send JSON: -H 'Content-Type: application/json' -d '{}'",
        )


def add_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if request.endpoint != "static":
        response.vary.add("Accept")
    return response


def show_error(error: HTTPException) -> ResponseReturnValue:
    """Answer an error as a page or as JSON, with its headers."""
    response = error.get_response()
    data = {"error": error.name, "message": error.description}
    if wants_page():
        response.set_data(render("error.html", error=error))
    else:
        response.set_data(jsonify(data).data)
        response.mimetype = "application/json"
    return response


def show_missing_table(error: ProgrammingError) -> ResponseReturnValue:
    """Answer a missing table with the command that creates it."""
    if error.args[0] != ER.NO_SUCH_TABLE:
        raise error
    current_app.logger.error("%s", error)
    hint = "The table is not there yet. Run: flask --app example_app init-db"
    return show_error(ServiceUnavailable(hint))
