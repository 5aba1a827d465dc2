"""The people: show, add and delete them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, abort, flash, jsonify, redirect, request, url_for
from flask.typing import ResponseReturnValue

from . import database
from .database import LONGEST_NAME
from .web import reply

blueprint = Blueprint("people", __name__, url_prefix="/person")

FIELDS = {"first_name": "First name", "last_name": "Last name"}


@blueprint.get("/all")
def everybody() -> ResponseReturnValue:
    people = database.all_people()
    return reply("people.html", people, people=people, **blank_form())


@blueprint.get("/first")
def first() -> ResponseReturnValue:
    person = database.first_person()
    if person is None:
        abort(404, "The directory is empty.")
    return reply("first.html", person, person=person)


@blueprint.get("/add")
def add_form() -> ResponseReturnValue:
    """Redirect a browser that reloads the address of a refused form."""
    return redirect(url_for(".everybody"))


@blueprint.post("/add")
def add() -> ResponseReturnValue:
    values, errors = validated(submitted())
    if errors:
        data = {"error": "Unprocessable Entity", "errors": errors}
        form = {**blank_form(), "values": values, "errors": errors}
        return reply("people.html", data, 422, people=database.all_people(), **form)
    person = database.add_person(**values)
    if request.is_json:
        return jsonify(person), 201
    flash(f"{person.name} is in the directory now.")
    return redirect(url_for(".everybody"), 303)


@blueprint.post("/<int:person_id>/delete")
def delete(person_id: int) -> ResponseReturnValue:
    person = database.remove_person(person_id)
    if person is None:
        abort(404, f"No person has the number {person_id}.")
    if request.is_json:
        return jsonify(deleted=person)
    flash(f"{person.name} has been deleted.")
    return redirect(url_for(".everybody"), 303)


def blank_form() -> dict[str, Any]:
    return {"fields": FIELDS, "longest": LONGEST_NAME, "values": {}, "errors": {}}


def submitted() -> Mapping[str, object]:
    if not request.is_json:
        return request.form
    data = request.get_json()
    if not isinstance(data, dict):
        abort(400, "Send a JSON object with first_name and last_name.")
    return data


def validated(data: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the cleaned values, and the faults by field."""
    values: dict[str, str] = {}
    errors: dict[str, str] = {}
    for field, label in FIELDS.items():
        text = data.get(field, "")
        # "Anna  Maria " is the same name.
        values[field] = " ".join(text.split()) if isinstance(text, str) else ""
        fault = fault_of(text, values[field])
        if fault:
            errors[field] = f"{label} {fault}."
    return values, errors


def fault_of(text: object, value: str) -> str | None:
    if not isinstance(text, str):
        return "must be text"
    if not value:
        return "is required"
    if len(value) > LONGEST_NAME:
        return f"must have at most {LONGEST_NAME} characters, and has {len(value)}"
    # Control characters, and halves of characters, which UTF-8 cannot hold.
    return None if value.isprintable() else "holds a character that cannot be shown"
