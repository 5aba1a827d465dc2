"""The front page, and a page that ends all connections."""

from __future__ import annotations

from dataclasses import asdict

from flask import Blueprint, flash, jsonify, redirect, request, url_for
from flask.typing import ResponseReturnValue

from ..database import db
from ..web import reply
from .connections import end_connections

blueprint = Blueprint("pages", __name__, template_folder="templates")

ROUTES = {
    "GET /person/all": "everybody",
    "GET /person/first": "the first person",
    "POST /person/add": "add a person: first_name, last_name",
    "POST /person/<id>/delete": "delete a person",
    "POST /timeout": "have the server end every connection that the app holds",
}
EXPLANATION = (
    "POST here, and the server ends every connection that this app holds. The next"
    " request gets a new one."
)


@blueprint.get("/")
def index() -> ResponseReturnValue:
    stats = db.stats()
    data = {"routes": ROUTES, "pool": asdict(stats)}
    return reply("index.html", data, stats=stats)


@blueprint.get("/timeout")
def timeout() -> ResponseReturnValue:
    stats = db.stats()
    data = {"message": EXPLANATION, "pool": asdict(stats)}
    return reply("timeout.html", data, stats=stats)


@blueprint.post("/timeout")
def break_it() -> ResponseReturnValue:
    ended = end_connections()
    message = (
        f"The server has ended every connection of this app: {ended}, counting the one"
        " that asked for it. The next click works."
    )
    if request.is_json:
        return jsonify(ended=ended, message=message)
    flash(message)
    return redirect(url_for(".timeout"), 303)
