"""The connection pool, without Flask; only its ``driver`` speaks to sockets."""

from __future__ import annotations

from .pool import Pool

__all__ = ["Pool"]
