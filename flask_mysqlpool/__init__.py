"""Pooled MySQL and MariaDB connections for Flask."""

from __future__ import annotations

from .config import PoolConfig
from .errors import (
    CommitUnknown,
    ConfigError,
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
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
from .pool.stats import Health, Observer, PoolStats

__all__ = [
    "CommitUnknown",
    "ConfigError",
    "ConnectionLost",
    "ConnectionReturned",
    "ConnectionShared",
    "Health",
    "MySQLPool",
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
    "RecordedQuery",
    "ServerUnavailable",
    "TransactionError",
    "close_db",
    "get_db",
    "get_recorded_queries",
]
