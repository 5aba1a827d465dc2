"""What kinds of pools there are."""

from __future__ import annotations

from ..config import PoolConfig
from . import Pool
from .driver.session import PhysicalConnection


class NullPool(Pool):
    """Connects for each checkout and closes at each return: no pooling.

    Everything else is the same: the bound, the deadline, the line and the errors.
    """

    def _fault(self, con: PhysicalConnection, now: float) -> str | None:
        return "dead" if con.lost is not None else "surplus"


def make_pool(config: PoolConfig) -> Pool:
    """A pool of the kind that ``BACKEND`` says."""
    if isinstance(config.backend, type):
        pool: Pool = config.backend(config)
        return pool
    return NullPool(config) if config.backend == "null" else Pool(config)
