"""How long to measure; more of it means less noise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Durations are in seconds."""

    #: Rounds in which everything that is compared takes its turn, and a turn's length.
    rounds: int
    turn: float
    #: Of cycles in which the server's commands are counted.
    counted: int
    #: Runs of many threads: how many, and how long each.
    runs: int
    run: float
    #: How long a connect hangs.
    hang: float
    #: What the network takes in each direction, and requests that are timed with it.
    delay: float
    requests: int
    #: Of threads that fight for a few connections of the stub driver.
    fight: float
    #: Spikes of requests, of which the median counts.
    spikes: int
    #: Of connects that are timed.
    connects: int
    #: Visits to each website: how many, and how long each.
    visits: int
    visit: float
    #: Checkouts after which the memory must be what it was.
    checkouts: int


FULL = Effort(
    rounds=40,
    turn=0.03,
    counted=200,
    runs=2,
    run=2.0,
    hang=2.0,
    delay=0.02,
    requests=5,
    fight=2.5,
    spikes=3,
    connects=40,
    visits=3,
    visit=1.0,
    checkouts=1_000_000,
)
QUICK = Effort(
    rounds=10,
    turn=0.01,
    counted=40,
    runs=1,
    run=0.6,
    hang=0.5,
    delay=0.01,
    requests=2,
    fight=1.0,
    spikes=1,
    connects=10,
    visits=1,
    visit=0.5,
    checkouts=100_000,
)
