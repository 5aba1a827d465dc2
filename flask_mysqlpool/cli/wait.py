"""``flask mysqlpool wait``: until the servers accept the app's connections."""

from __future__ import annotations

import sys
import time

from ..config import PoolConfig
from ..config.settings import altered
from ..workers.mysql_server import Unanswered, connect_to
from .check import no_connection
from .commands import (
    DEGRADED,
    bind_option,
    duration_option,
    echo,
    find_site,
    group,
    interrupted_by_signals,
)

#: Seconds between two tries.
PAUSE = 0.5
#: Seconds that a try has at least, even past the timeout: with fewer, its error would
#: say that the time was too short, and not what is wrong.
LEAST = 1.0


@group.command()
@duration_option(
    "--timeout",
    default=60.0,
    help="Give up after this time, by default 60 seconds.",
    min=0,
    min_open=True,
)
@bind_option
def wait(timeout: float, bind: str | None) -> None:
    """Wait until the server accepts connections, as a container does at its start.

    Prints why it does not yet, whenever the reason changes. Exit code 1 if it still
    does not after the timeout.
    """
    site = find_site(bind)
    try:
        with interrupted_by_signals():
            late = _wait(dict(site.pools), time.monotonic() + timeout)
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            raise
        sys.exit(128 + interrupt.args[0])
    echo(f"{b}: no connection within {timeout:g} s: {why}" for b, why in late.items())
    sys.exit(DEGRADED if late else 0)


def _wait(pools: dict[str, PoolConfig], deadline: float) -> dict[str, str]:
    """Try each pool until it connects; return why those do not that remain."""
    reasons: dict[str, str] = {}
    while True:
        for bind, config in tuple(pools.items()):
            why = _why_not(config, deadline - time.monotonic())
            if why is None:
                del pools[bind]
                reasons.pop(bind, None)
                echo([f"{bind}: {config.server} accepts connections"])
            elif reasons.get(bind) != why:
                reasons[bind] = why
                echo([f"{bind}: not yet: {why}"])
        left = deadline - time.monotonic()
        if not pools or left <= 0:
            return reasons
        time.sleep(min(PAUSE, left))


def _why_not(config: PoolConfig, left: float) -> str | None:
    """Connect once; return the error with what to do, None if there is none."""
    seconds = min(config.connect_timeout, max(left, LEAST))
    try:
        with connect_to(altered(config, connect_timeout=seconds)):
            return None
    except Unanswered as error:
        return no_connection(error).advice
