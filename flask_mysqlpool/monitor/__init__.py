"""A web page that shows the pools of all workers; opt-in.

``app.register_blueprint(create_monitor(authorize=...))`` adds it to an app. It takes no
pooled connection, so it also works while a pool is exhausted.
"""

from __future__ import annotations

from .auth import is_local
from .views import create_monitor

__all__ = ["create_monitor", "is_local"]
