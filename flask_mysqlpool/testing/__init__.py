"""What tests of an application need: a server, a bad network, and no traces.

Fixtures for pytest are in :mod:`flask_mysqlpool.testing.fixtures`.
"""

from __future__ import annotations

from .engines import ServerNotFound as ServerNotFound
from .proxy import FaultProxy as FaultProxy
from .rollback import rolled_back as rolled_back
from .server import LocalServer as LocalServer
from .server import ServerFailed as ServerFailed

__all__ = ["FaultProxy", "LocalServer", "ServerFailed", "ServerNotFound", "rolled_back"]
