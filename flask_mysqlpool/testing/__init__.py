"""What tests of an application need: a throw-away server and a bad network."""

from __future__ import annotations

from .engines import ServerNotFound as ServerNotFound
from .proxy import FaultProxy as FaultProxy
from .server import LocalServer as LocalServer
from .server import ServerFailed as ServerFailed

__all__ = ["FaultProxy", "LocalServer", "ServerFailed", "ServerNotFound"]
