"""Posts: all can read them, and their authors can change them."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from .auth import login_required
from .db import get_db

blueprint = Blueprint("blog", __name__)


@blueprint.get("/")
def index() -> ResponseReturnValue:
    posts = get_db().execute(
        "SELECT post.id, title, body, created, author_id, name"
        " FROM post JOIN author ON author.id = author_id"
        " ORDER BY created DESC, post.id DESC"
    )
    return render_template("index.html", posts=posts.fetchall())


def own_post(post_id: int) -> Any:
    """Return a post of the author who is logged in; others get 403 or 404."""
    post: Any = (
        get_db()
        .execute("SELECT id, author_id, title, body FROM post WHERE id = %s", [post_id])
        .fetchone()
    )
    if post is None:
        abort(404, f"There is no post {post_id}.")
    if post["author_id"] != g.author["id"]:
        abort(403, "This is another author's post.")
    return post


def form(post: Any, fault: str = "", status: int = 200) -> ResponseReturnValue:
    return render_template("post.html", post=post, fault=fault), status


def submitted() -> dict[str, str]:
    return {"title": request.form["title"].strip(), "body": request.form["body"]}


@blueprint.get("/new")
@login_required
def new_form() -> ResponseReturnValue:
    return form({})


@blueprint.post("/new")
@login_required
def create() -> ResponseReturnValue:
    post = submitted()
    if not post["title"]:
        return form(post, "A title is required.", 400)
    db = get_db()
    db.execute(
        "INSERT INTO post (author_id, title, body) VALUES (%s, %s, %s)",
        [g.author["id"], post["title"], post["body"]],
    )
    db.commit()
    return redirect(url_for(".index"), 303)


@blueprint.get("/<int:post_id>")
@login_required
def edit_form(post_id: int) -> ResponseReturnValue:
    return form(own_post(post_id))


@blueprint.post("/<int:post_id>")
@login_required
def update(post_id: int) -> ResponseReturnValue:
    post = {"id": own_post(post_id)["id"], **submitted()}
    if not post["title"]:
        return form(post, "A title is required.", 400)
    db = get_db()
    db.execute(
        "UPDATE post SET title = %s, body = %s WHERE id = %s",
        [post["title"], post["body"], post_id],
    )
    db.commit()
    return redirect(url_for(".index"), 303)


@blueprint.post("/<int:post_id>/delete")
@login_required
def delete(post_id: int) -> ResponseReturnValue:
    own_post(post_id)
    db = get_db()
    db.execute("DELETE FROM post WHERE id = %s", [post_id])
    db.commit()
    return redirect(url_for(".index"), 303)
