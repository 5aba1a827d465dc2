"""The record of executed statements, for development, and the log of slow ones.

Recording cursors are separate classes, so statements cost nothing extra without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR, WARNING
from time import perf_counter
from typing import Any

import pymysql

from ..config import PoolConfig
from .diagnostics import caller
from .driver.logs import QUERIES, log
from .driver.statements import LONGEST, bare

_PYMYSQL = os.path.dirname(pymysql.__file__) + os.sep

#: Maximum number of characters of the parameters that are logged.
LOGGED = 1000

#: Statements whose flag is no news: the server's own tables have no indexes, and a
#: UNION or a recursion reads its own temporary table.
_ABOUT_NO_INDEX = re.compile(
    rb"(?:show|desc|describe|explain)\b"
    rb"|.*\b(?:information_schema|performance_schema|union|intersect|except)\b",
    re.DOTALL,
)


@dataclass(frozen=True)
class RecordedQuery:
    """One statement executed by a cursor."""

    #: The statement as passed to ``execute()``, without its parameters.
    statement: str
    #: The parameters, if ``LOG_PARAMETERS`` is set; otherwise None.
    parameters: Any
    #: Seconds until the result was complete or, if unbuffered, had begun.
    duration: float
    #: The endpoint of the request that executed it.
    endpoint: str | None
    #: Rows found or changed; None for an unbuffered cursor, or after an error.
    rows: int | None
    #: The file and line that executed it.
    location: str
    #: Whether the server reported that it has read a table without an index; None for
    #: an unbuffered cursor, or after an error.
    no_index: bool | None = None


#: Receives each statement that is recorded.
Keep = Callable[[RecordedQuery], None]

#: Those that receive the statements of all pools of this process.
OF_ALL_POOLS: list[Keep] = []


class Recorder:
    """Records statements as the settings of a pool require."""

    def __init__(self, config: PoolConfig, keep: tuple[Keep, ...] = ()) -> None:
        self._name = config.name
        self._slow = config.slow_query or float("inf")
        self._with_parameters = config.log_parameters
        self._keep = keep

    def note(
        self,
        statement: str | bytes,
        parameters: object,
        started: float,
        endpoint: str | None,
        rows: int | None,
        no_index: bool | None = None,
    ) -> None:
        """Record a statement, without raising: the server has executed it already."""
        duration = perf_counter() - started
        if duration < self._slow and not (self._keep or OF_ALL_POOLS):
            return
        try:
            frame = caller(_PYMYSQL)
            text = statement if isinstance(statement, str) else bytes(statement)
            query = RecordedQuery(
                text if isinstance(text, str) else repr(text),
                parameters if self._with_parameters else None,
                duration,
                endpoint,
                rows,
                f"{frame.f_code.co_filename}:{frame.f_lineno}",
                no_index and not _ABOUT_NO_INDEX.match(bare(text, LONGEST)),
            )
            for keep in (*self._keep, *OF_ALL_POOLS):
                keep(query)
            if duration >= self._slow:
                self._log(query)
        except Exception as error:
            text = "%s: a statement could not be recorded"
            log(ERROR, text, self._name, logger=QUERIES, error=error)

    def _log(self, query: RecordedQuery) -> None:
        log(
            WARNING,
            "%s: slow statement: %.3f s, %s rows, for %s, at %s: %s%s",
            self._name,
            query.duration,
            "?" if query.rows is None else query.rows,
            query.endpoint,
            query.location,
            one_line(query.statement),
            f" {shown(query.parameters)}" if self._with_parameters else "",
            logger=QUERIES,
        )


def one_line(statement: str, most: int = LOGGED) -> str:
    """Return a statement in one line of at most this many characters."""
    text = " ".join(statement.split())
    return text if len(text) <= most else f"{text[:most]}…"


def shown(parameters: object) -> str:
    """Return the parameters of a statement as text, without raising."""
    try:
        return f"{parameters!r:.{LOGGED}}"
    except Exception as error:
        # The statement has been executed, so its caller must not see this error.
        return f"(parameters that cannot be shown: {error!r:.100})"


def make_recorder(config: PoolConfig, *keep: Keep) -> Recorder | None:
    """Make a recorder, if a setting or a function that is to be called requires one."""
    wanted = config.record_queries or config.slow_query or keep or OF_ALL_POOLS
    return Recorder(config, keep) if wanted else None
