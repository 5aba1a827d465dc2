"""A blog: people register, log in, and write posts, which all can read.

It was on sqlite3 once; docs/from-sqlite.rst shows each line that has changed. On a
database of yours::

    export FLASK_MYSQLPOOL_URL=mysql://user:password@127.0.0.1:3306/blog
    flask --app example_blog init-db
    flask --app example_blog run

Forms have no tokens against CSRF; ``example_app`` has them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask

from . import auth, blog, db, errors


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Create the app, configured by the environment (``FLASK_…``) and by ``config``."""
    app = Flask(__name__)
    app.config.from_mapping(
        # Logins end with the process. For more, set one in the environment.
        SECRET_KEY=secrets.token_hex(),
        SESSION_COOKIE_SAMESITE="Lax",
        MYSQLPOOL_CURSORCLASS="RowCursor",
        MYSQLPOOL_SETSESSION=["SET time_zone = '+00:00'"],
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    db.init_app(app)
    errors.init_app(app)
    app.register_blueprint(auth.blueprint)
    app.register_blueprint(blog.blueprint)
    return app
