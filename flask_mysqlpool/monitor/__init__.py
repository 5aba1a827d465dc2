"""A page that shows the pools of all workers while they work; opt-in.

``app.register_blueprint(create_monitor(authorize=...))``. It takes no pooled
connection, so it answers when the pool is exhausted, too.
"""

from __future__ import annotations

from .auth import is_local
from .views import create_monitor

__all__ = ["create_monitor", "is_local"]
