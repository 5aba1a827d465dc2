"""What statements took: recorded for whoever develops, and logged where they are slow.

Without a recorder nothing of this is in the way of a statement: cursors that record are
classes of their own.
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

#: So much of a statement is logged, in characters.
LOGGED = 1000


@dataclass(frozen=True)
class RecordedQuery:
    """One statement that a cursor has executed."""

    #: As it was given to ``execute()``, without its parameters.
    statement: str
    #: Those, if ``LOG_PARAMETERS`` asks for them.
    parameters: Any
    #: Seconds until its result was there.
    duration: float
    #: What the connection was taken for.
    endpoint: str | None
    #: Rows found or changed; None if they are read one by one, or after an error.
    rows: int | None
    #: The file and line that executed it.
    location: str


class Recorder:
    """Notes statements as the settings of a pool say."""

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
        """Note a statement, which the server has executed: nothing may fail here."""
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
        # By now the statement has been executed.
        return f"(parameters that cannot be shown: {error!r:.100})"


def make_recorder(
    config: PoolConfig, keep: Callable[[RecordedQuery], None]
) -> Recorder | None:
    """What the settings ask for; None if that is nothing."""
    wanted = config.record_queries or config.slow_query
    return Recorder(config, keep) if wanted else None
