"""The desired state of a pool, which commands write and workers apply."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

#: The exceptions that parsing a record of any shape may raise.
_DAMAGES = AttributeError, KeyError, TypeError, ValueError, OverflowError, OSError
#: Generations are less than this.
_MOST = 1 << 63


class DesiredState(NamedTuple):
    """The state of one pool that its workers are to reach."""

    #: Connections of earlier generations are to be replaced; 0 before the first reset.
    generation: int = 0
    paused: bool = False
    #: Of a pause: the user who requested it, its begin, and its end, if it has one.
    by: str = ""
    since: float = 0.0
    until: float | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> DesiredState:
        """Parse a record, perhaps of another version; :exc:`ValueError` if damaged."""
        try:
            generation, paused = int(record["generation"]), bool(record["paused"])
            if not 0 <= generation < _MOST:
                raise ValueError("generation out of range")
            if not paused:
                return cls(generation)
            by, since, until = map(record.get, ("by", "since", "until"))
            until = None if until is None else float(until)
            state = cls(generation, True, str(by or ""), float(since or 0), until)
            state.in_words()  # raises if it has no date
        except _DAMAGES as error:
            raise ValueError("damaged") from error
        return state

    def now(self) -> DesiredState:
        """Return the state without a pause that has expired."""
        ended = self.until is not None and self.until <= time.time()
        return DesiredState(self.generation) if ended else self

    def pause(self, by: str, seconds: float | None) -> DesiredState:
        """Return the state with a pause, which expires after ``seconds`` if given."""
        now = time.time()
        since = self.since if self.paused else now
        return DesiredState(self.generation, True, by, since, seconds and now + seconds)

    def about(self) -> dict[str, Any]:
        """Return who requested the pause, its begin and its end."""
        return {"by": self.by, "since": self.since, "until": self.until}

    def in_words(self) -> str:
        """Describe the pause in a sentence."""
        by = f" by {self.by}" * bool(self.by)
        since = f" since {_moment(self.since)}" * bool(self.since)
        until = f", until {_moment(self.until)}" if self.until is not None else ""
        return f"paused{by}{since}{until}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
