"""Tools for tests of an application: a server, faults of the network, rollback, counts.

Fixtures for pytest are in :mod:`flask_mysqlpool.testing.fixtures`.
"""

from __future__ import annotations

from .fault_proxy import FaultProxy as FaultProxy
from .local_server import LocalServer as LocalServer
from .local_server import ServerFailed as ServerFailed
from .queries import assert_queries as assert_queries
from .rollback import rolled_back as rolled_back
from .server_binaries import ServerNotFound as ServerNotFound

__all__ = [
    "FaultProxy",
    "LocalServer",
    "ServerFailed",
    "ServerNotFound",
    "assert_queries",
    "rolled_back",
]
