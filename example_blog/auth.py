"""Authors: they register, log in and log out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flask import (
    Blueprint,
    abort,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash, generate_password_hash

from .db import get_db

blueprint = Blueprint("auth", __name__)


@blueprint.before_app_request
def load_author() -> None:
    """Set ``g.author`` to the one who is logged in, or to None."""
    g.author = None
    if "author" in session:
        g.author = (
            get_db()
            .execute("SELECT id, name FROM author WHERE id = %s", [session["author"]])
            .fetchone()
        )


def login_required(
    view: Callable[..., ResponseReturnValue],
) -> Callable[..., ResponseReturnValue]:
    """Decorate a view: others get 401, with the form to log in."""

    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> ResponseReturnValue:
        if g.author is None:
            abort(401)
        return view(*args, **kwargs)

    return wrapper


@blueprint.app_errorhandler(401)
def ask_to_log_in(error: Exception) -> ResponseReturnValue:
    return form("login", "Log in first.", 401)


def form(action: str, fault: str = "", status: int = 200) -> ResponseReturnValue:
    return render_template("author.html", action=action, fault=fault), status


@blueprint.get("/register")
def register_form() -> ResponseReturnValue:
    return form("register")


@blueprint.post("/register")
def register() -> ResponseReturnValue:
    name, password = request.form["name"].strip(), request.form["password"]
    if not name or not password:
        return form("register", "A name and a password are required.", 400)
    db = get_db()
    try:
        cursor = db.execute(
            "INSERT INTO author (name, password) VALUES (%s, %s)",
            [name, generate_password_hash(password)],
        )
        db.commit()
    except db.IntegrityError:
        return form("register", f"The name {name} is taken.", 409)
    return log_in(cursor.lastrowid)


@blueprint.get("/login")
def login_form() -> ResponseReturnValue:
    return form("login")


@blueprint.post("/login")
def login() -> ResponseReturnValue:
    name, password = request.form["name"].strip(), request.form["password"]
    author: Any = (
        get_db()
        .execute("SELECT id, password FROM author WHERE name = %s", [name])
        .fetchone()
    )
    if author is None or not check_password_hash(author["password"], password):
        return form("login", "The name or the password is wrong.", 401)
    return log_in(author["id"])


def log_in(author_id: int | None) -> ResponseReturnValue:
    session.clear()
    session["author"] = author_id
    return redirect(url_for("blog.index"), 303)


@blueprint.post("/logout")
def logout() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("blog.index"), 303)
