"""What the server says, asked seldom and briefly, however many pages are open."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from ..config import PoolConfig
from ..pool.driver.process import process
from ..workers.mysql_server import ServerReport, Thread, Unanswered, connect_to

#: Seconds that a connect may take, and each of a few answers.
CONNECT, ANSWER = 0.5, 0.3
#: Seconds that an answer is good for, and a failure.
FRESH, FAILED = 0.9, 3.0
#: Characters of a statement that are looked at, and that are shown.
_READ, _SHOWN = 2000, 200


@dataclass(frozen=True)
class Answer:
    """A report, or why there is none; when it was asked for, and is to be again."""

    report: ServerReport | None
    error: str
    asked: float
    good_until: float


NOT_ASKED = Answer(None, "has not been asked yet", 0.0, 0.0)


class Asker:
    """Asks one server for this process; its answer is shared by all who look."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = replace(
            config,
            connect_timeout=min(config.connect_timeout, CONNECT),
            read_timeout=min(config.read_timeout or ANSWER, ANSWER),
            write_timeout=min(config.write_timeout or ANSWER, ANSWER),
        )
        self._begin()

    def _begin(self) -> None:
        self._pid = process()
        self._turn = threading.Lock()
        self._last = NOT_ASKED

    def answer(self, may_ask: bool = True) -> Answer:
        """The last answer, or a new one if that is old and nobody else asks now."""
        if self._pid != process():
            self._begin()
        last = self._last
        is_good = time.monotonic() < last.good_until
        if is_good or not may_ask or not self._turn.acquire(blocking=False):
            return last
        try:
            self._last = self._ask()
        finally:
            self._turn.release()
        return self._last

    def _ask(self) -> Answer:
        asked = time.monotonic()
        try:
            with connect_to(self._config) as server:
                report = server.report()
        except Unanswered as error:
            return Answer(None, error.text, asked, time.monotonic() + FAILED)
        return Answer(report, "", asked, asked + FRESH)


def describe(thread: Thread) -> dict[str, Any]:
    """What a connection is doing, as the server sees it."""
    return {
        "command": thread.command,
        "for": thread.seconds,
        "statement": without_values(thread.statement or ""),
    }


def without_values(statement: str) -> str:
    """A statement up to its first text or comment, and without numbers.

    The values in it are nobody's business. What comes after a quotation mark cannot be
    told from what is within, unless one knows the session's SQL mode.
    """
    text = " ".join(statement[:_READ].split())
    known = re.split(r"""['"#]|/\*|--""", text)[0]
    shown = re.sub(r"(?<![\w$])\d[\w.]*", "?", known)
    is_whole = known == text and len(shown) <= _SHOWN and len(statement) <= _READ
    return shown[:_SHOWN] + "…" * (not is_whole)
