"""The Flask extension, and what it keeps for each app."""

from __future__ import annotations

from .mysqlpool import MySQLPool, close_db, get_db, get_recorded_queries

__all__ = ["MySQLPool", "close_db", "get_db", "get_recorded_queries"]
