"""A cache of the server's answers, which bounds rate and duration of queries."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..config import PoolConfig
from ..config.settings import altered
from ..workers.mysql_server import ServerReport, Thread, Unanswered, connect_to

#: Maximum seconds of a connect, and of each answer.
CONNECT, ANSWER = 0.5, 0.3
#: Seconds for which an answer is cached, and a failure.
FRESH, FAILED = 0.9, 3.0
#: Characters of a statement that are scanned, and that are shown.
_READ, _SHOWN = 2000, 200


@dataclass(frozen=True)
class Answer:
    """A report, or why there is none; when it was queried, and when it expires."""

    report: ServerReport | None
    error: str
    queried: float
    expires: float


NOT_QUERIED = Answer(None, "has not been queried yet", 0.0, 0.0)


class ServerCache:
    """The last answer of one server, shared by all requests of this process."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = altered(
            config,
            connect_timeout=min(config.connect_timeout, CONNECT),
            read_timeout=min(config.read_timeout or ANSWER, ANSWER),
            write_timeout=min(config.write_timeout or ANSWER, ANSWER),
        )
        self._querying = threading.Lock()
        self._last = NOT_QUERIED

    def answer(self, may_query: bool = True) -> Answer:
        """Return the last answer; query a new one if it is old and no thread does."""
        is_fresh = time.monotonic() < self._last.expires
        if may_query and not is_fresh and self._querying.acquire(blocking=False):
            try:
                self._last = self._query()
            finally:
                self._querying.release()
        return self._last

    def _query(self) -> Answer:
        queried = time.monotonic()
        try:
            with connect_to(self._config) as server:
                report = server.report()
        except Unanswered as error:
            return Answer(None, error.text, queried, time.monotonic() + FAILED)
        return Answer(report, "", queried, queried + FRESH)


def describe(thread: Thread) -> dict[str, Any]:
    """Return what a connection does, by the server's thread list."""
    return {
        "command": thread.command,
        "for": thread.seconds,
        "statement": without_values(thread.statement or ""),
    }


def without_values(statement: str) -> str:
    """Cut a statement at its first string or comment, and mask its numbers.

    Values may be confidential. Where a string ends depends on the session's SQL mode,
    which is not known: so everything after a quotation mark is cut.
    """
    text = " ".join(statement[:_READ].split())
    known = re.split(r"""['"#]|/\*|--""", text)[0]
    shown = re.sub(r"(?<![\w$])\d[\w.]*", "?", known)
    is_whole = known == text and len(shown) <= _SHOWN and len(statement) <= _READ
    return shown[:_SHOWN] + "…" * (not is_whole)
