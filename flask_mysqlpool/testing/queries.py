"""Fails a test that executes more statements than it should, or without an index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..pool.pool import recording
from ..pool.query_log import RecordedQuery, one_line, shown


@contextmanager
def assert_queries(
    at_most: int | None = None,
    exactly: int | None = None,
    no_full_scans: bool = False,
) -> Iterator[list[RecordedQuery]]:
    """Count the statements of the block, and fail if there are others than expected.

    Counted is what cursors execute that are made in the block: on all pools of this
    process, in all threads, also in the requests of a test client. The pool's own
    commands, such as COMMIT, are not. ``no_full_scans`` fails for statements that the
    server reports to have used no index; see :doc:`observability`. The value of the
    ``with`` statement is the list of the statements so far.

    Raises :exc:`AssertionError`, which lists all statements with line of code,
    duration and rows, and with parameters if ``LOG_PARAMETERS`` is set.
    """
    queries: list[RecordedQuery] = []
    with recording(queries.append):
        yield queries
    number, faults = len(queries), []
    if exactly is not None and number != exactly:
        faults.append(f"expected exactly {exactly}, executed {number}")
    if at_most is not None and number > at_most:
        faults.append(f"expected at most {at_most}, executed {number}")
    if no_full_scans and (without := sum(bool(q.no_index) for q in queries)):
        faults.append(f"{without} used no index")
    if faults:
        lines = (f"  {n}. {_line(query)}" for n, query in enumerate(queries, 1))
        raise AssertionError("\n".join([f"statements: {', '.join(faults)}", *lines]))


def _line(query: RecordedQuery) -> str:
    rows = "?" if query.rows is None else query.rows
    told = f"{query.location}: {query.duration * 1000:.1f} ms, {rows} rows"
    told += ", no index" * bool(query.no_index)
    if query.parameters is None:
        return f"{told}: {one_line(query.statement)}"
    return f"{told}: {one_line(query.statement)} {shown(query.parameters)}"
