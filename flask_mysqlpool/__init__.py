"""Pooled MySQL and MariaDB connections for Flask."""

from __future__ import annotations

from .config import PoolConfig
from .errors import (
    CommitUnknown,
    ConfigError,
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    NotOneRow,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    ServerUnavailable,
    TransactionError,
)
from .extension import MySQLPool, close_db, get_db, get_recorded_queries
from .pool import Pool
from .pool.connection import PooledConnection
from .pool.pool import NullPool
from .pool.query_log import RecordedQuery
from .pool.sql.cursors import PooledCursor
from .pool.sql.rows import Row, RowCursor, SSRowCursor, TypedCursor
from .pool.sql.templates import identifier
from .pool.stats import Health, Observer, PoolStats

__all__ = [
    "CommitUnknown",
    "ConfigError",
    "ConnectionLost",
    "ConnectionReturned",
    "ConnectionShared",
    "Health",
    "MySQLPool",
    "NotOneRow",
    "NullPool",
    "Observer",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolError",
    "PoolFull",
    "PoolStats",
    "PoolTimeout",
    "PooledConnection",
    "PooledCursor",
    "RecordedQuery",
    "Row",
    "RowCursor",
    "SSRowCursor",
    "ServerUnavailable",
    "TransactionError",
    "TypedCursor",
    "close_db",
    "get_db",
    "get_recorded_queries",
    "identifier",
]
