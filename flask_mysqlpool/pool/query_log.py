"""The record of executed statements, for development, and the log of slow ones.

Recording cursors are separate classes, so statements cost nothing extra without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR, WARNING
from time import perf_counter
from typing import Any

import pymysql

from ..config import PoolConfig
from .diagnostics import caller
from .driver.logs import QUERIES, log

_PYMYSQL = os.path.dirname(pymysql.__file__) + os.sep

#: Maximum number of characters of the parameters that are logged.
LOGGED = 1000


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


class Recorder:
    """Records statements as the settings of a pool require."""

    def __init__(
        self, config: PoolConfig, keep: Callable[[RecordedQuery], None]
    ) -> None:
        self._name = config.name
        self._slow = config.slow_query or float("inf")
        self._with_parameters = config.log_parameters
        self._keep = keep if config.record_queries else None

    def note(
        self,
        statement: str | bytes,
        parameters: object,
        started: float,
        endpoint: str | None,
        rows: int | None,
    ) -> None:
        """Record a statement, without raising: the server has executed it already."""
        duration = perf_counter() - started
        if duration < self._slow and self._keep is None:
            return
        try:
            frame = caller(_PYMYSQL)
            query = RecordedQuery(
                statement if isinstance(statement, str) else repr(bytes(statement)),
                parameters if self._with_parameters else None,
                duration,
                endpoint,
                rows,
                f"{frame.f_code.co_filename}:{frame.f_lineno}",
            )
            if self._keep is not None:
                self._keep(query)
            if duration >= self._slow:
                self._log(query)
        except Exception as error:
            text = "%s: a statement could not be recorded"
            log(ERROR, text, self._name, logger=QUERIES, error=error)

    def _log(self, query: RecordedQuery) -> None:
        text = " ".join(query.statement.split())
        log(
            WARNING,
            "%s: slow statement: %.3f s, %s rows, for %s, at %s: %s%s",
            self._name,
            query.duration,
            "?" if query.rows is None else query.rows,
            query.endpoint,
            query.location,
            text,
            f" {_shown(query.parameters)}" if self._with_parameters else "",
            logger=QUERIES,
        )


def _shown(parameters: object) -> str:
    try:
        return f"{parameters!r:.{LOGGED}}"
    except Exception as error:
        # The statement has been executed, so its caller must not see this error.
        return f"(parameters that cannot be shown: {error!r:.100})"


def make_recorder(
    config: PoolConfig, keep: Callable[[RecordedQuery], None]
) -> Recorder | None:
    """Make a recorder, if a setting requires one."""
    wanted = config.record_queries or config.slow_query
    return Recorder(config, keep) if wanted else None
