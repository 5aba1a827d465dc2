"""What only the demonstration needs: pages that break things, and their server.

An app of your own needs none of this.
"""

from __future__ import annotations

from flask import Flask

from flask_mysqlpool.monitor import is_local

from . import pages, trouble


def init_app(app: Flask) -> None:
    """Add the front page and the pages that break things."""
    app.jinja_env.globals.update(is_local=is_local)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(trouble.blueprint)
