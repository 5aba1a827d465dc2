"""What a pool asks of whoever keeps it in touch with the other processes of a site."""

from __future__ import annotations

from typing import Protocol

from ..config import PoolConfig
from ..errors import PoolError


class Liaison(Protocol):
    """What keeps a pool in touch; called outside its lock."""

    def news(self) -> None:
        """Something changed; called when ``Pool.news_from`` lets it."""

    def before_connect(self) -> None:
        """Called before each connect."""

    def closed(self) -> None:
        """The pool has been closed for good."""

    def take_slot(self) -> object | None:
        """A place among this host's connections, given back with its last reference.

        None if there is none left.
        """


class Alone:
    """In touch with nobody."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config

    def news(self) -> None:
        """Interests nobody."""

    def before_connect(self) -> None:
        """Needs nothing."""

    def closed(self) -> None:
        """Neither."""

    def take_slot(self) -> object:
        if self._config.max_host_connections is None:
            return True
        raise PoolError(
            "MAX_HOST_CONNECTIONS cannot be kept by a pool that is in touch with no"
            " other process; give it a Presence on a Board"
        )
