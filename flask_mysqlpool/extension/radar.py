"""The radar: what each request does to the database, for development.

It counts the statements of a request, tells the browser their time, and logs what is
worth a look: the same statement again and again, or one that used no index. Its
functions are called only if it is switched on.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from logging import WARNING
from typing import Any

from flask import Flask, Response, has_request_context, request

from ..pool.driver.logs import QUERIES, log
from ..pool.driver.statements import LONGEST, bare
from ..pool.query_log import RecordedQuery, one_line
from .contexts import RECORDED

#: A statement that is executed more often in one request is worth a look.
OFTEN = 10
#: Maximum number of statements in a log line, and of characters of each.
LISTED, SHOWN = 5, 100

#: The attribute of a request.
_KEY = "_mysqlpool_seen"
#: What an index could have served. Other statements read a whole table on purpose.
_SERVED_BY_INDEX = re.compile(rb"\b(?:where|join|order|group)\b")

_attaching = threading.Lock()


class Seen:
    """What one request has done. Threads may share it."""

    def __init__(self) -> None:
        #: Seconds that its statements took, and that it waited for connections.
        self.seconds = self.waited = 0.0
        #: The last of its statements.
        self.queries: deque[RecordedQuery] = deque(maxlen=RECORDED)
        #: How often each was executed, by its hash: a text may be long.
        self._counts: Counter[int] = Counter()
        #: Those that used no index, or were repeated: where each was executed last.
        self.without_index: dict[str, str] = {}
        self.repeated: dict[str, str] = {}

    @property
    def statements(self) -> int:
        """The number of statements."""
        return self._counts.total()

    def times(self, statement: str) -> int:
        """Return how often a statement was executed."""
        return self._counts[hash(statement)]

    def keep(self, query: RecordedQuery) -> None:
        text = query.statement
        self.seconds += query.duration
        self.queries.append(query)
        self._counts[hash(text)] += 1
        if self.times(text) > OFTEN:
            self.repeated[text] = query.location
        if query.no_index and len(self.without_index) < RECORDED:
            self.without_index[text] = query.location

    def faults(self) -> Iterator[str]:
        """Describe what is worth a look."""
        for text, location in list(self.repeated.items()):
            yield f"{self.times(text)} times {_shown(text, location)}"
        for text, location in list(self.without_index.items()):
            if _could_use_an_index(text):
                yield f"no index used by {_shown(text, location)}"


def _shown(statement: str, location: str) -> str:
    return f"{one_line(statement, SHOWN)} (at {location})"


def _could_use_an_index(statement: str) -> bool:
    code = bare(statement, LONGEST)
    return not code or _SERVED_BY_INDEX.search(code) is not None


def seen() -> Seen | None:
    """Return what the current request has done; None outside requests."""
    if not has_request_context():
        return None
    # In the request itself: up to Flask 3.1 several of them may share one g.
    values: dict[str, Any] = request._get_current_object().__dict__  # type: ignore[attr-defined]
    found: Seen = values.get(_KEY) or values.setdefault(_KEY, Seen())
    return found


def keep(query: RecordedQuery) -> None:
    """Count a statement."""
    if (found := seen()) is not None:
        found.keep(query)


def keep_wait(seconds: float) -> None:
    """Add the time that a checkout took."""
    if (found := seen()) is not None:
        found.waited += seconds


def attach(app: Flask) -> None:
    """Have each response and each end of a request call the radar, once."""
    with _attaching:
        if not is_attached(app):
            _put_first(add_header, app.after_request_funcs)
            _put_first(log_faults, app.teardown_request_funcs)


def is_attached(app: Flask) -> bool:
    """Return whether :func:`attach` was called."""
    return add_header in app.after_request_funcs.get(None, ())


def _put_first(own: Any, functions: dict[Any, list[Any]]) -> None:
    """Have Flask call a function last. Requests may go through the old list now."""
    functions[None] = [own, *functions.get(None, ())]


def add_header(response: Response) -> Response:
    """Add the header by which browsers show the times, beside those of the app."""
    if (found := seen()) is not None:
        number = found.statements
        response.headers.add(
            "Server-Timing",
            f'db;dur={found.seconds * 1000:.1f};desc="{number} statement'
            f'{"s" * (number != 1)}", pool;dur={found.waited * 1000:.1f};desc="waited"',
        )
    return response


def log_faults(error: BaseException | None = None) -> None:
    """Log what is worth a look, in one line, at the end of the request."""
    found = seen()
    if found is None or not (found.repeated or found.without_index):
        return
    faults = list(islice(found.faults(), LISTED + 1))
    if faults:
        log(
            WARNING,
            "%s: %d statements in %.3f s, waited %.3f s: %s",
            request.endpoint or request.path,
            found.statements,
            found.seconds,
            found.waited,
            "; ".join(faults[:LISTED]) + "; …" * (len(faults) > LISTED),
            logger=QUERIES,
        )
