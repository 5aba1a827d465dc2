"""Logging, which is foreign code: an app's handlers and filters may do anything."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress

from .text import plain


class _Plain:
    """Text of others in a log line, which it can neither end nor forge."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return plain(self._value)

    def __repr__(self) -> str:
        return plain(_Repr(self._value))


class _Repr(_Plain):
    def __str__(self) -> str:
        return repr(self._value)


def _shown(value: object) -> object:
    return value if isinstance(value, (int, float)) else _Plain(value)


def _record(
    logger: logging.Logger,
    level: int,
    text: str,
    args: Iterable[object],
    error: BaseException | None,
) -> logging.LogRecord:
    """Make what the caller of :func:`log` says into a record."""
    caller = sys._getframe(2)
    code = caller.f_code
    record = logger.makeRecord(
        *(logger.name, level, code.co_filename, caller.f_lineno, text),
        tuple(map(_shown, args)),
        None if error is None else (type(error), error, error.__traceback__),
        code.co_name,
    )
    if error is not None:
        # A formatter makes a traceback only if there is none yet.
        record.exc_text = "\n".join(_traceback(error))
    return record


def _traceback(error: BaseException) -> Iterator[str]:
    for entry in traceback.format_exception(None, error, error.__traceback__):
        # The text of an error may have lines of its own, which are not Python's.
        is_text = not entry.startswith("\n") and "File " != entry.lstrip(" |+-")[:5]
        entry = entry.removesuffix("\n")
        yield from map(plain, [entry] if is_text else entry.split("\n"))


def log(
    logger: logging.Logger | str,
    level: int,
    text: str,
    *args: object,
    error: BaseException | None = None,
) -> None:
    """Log a line, with the traceback of an error if one is given.

    What the arguments hold that a terminal would obey is escaped, and cut in length;
    so it is in the traceback, unless a formatter makes one of its own.

    Raises no :exc:`Exception`, whatever handlers and filters do; what they raise is
    shown as :mod:`logging` itself shows it. What is no ``Exception``, such as an
    interrupt, passes: call this after all that was taken has been given back.
    """
    try:
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        if logger.isEnabledFor(level):
            logger.handle(_record(logger, level, text, args, error))
    except Exception:
        with suppress(Exception):  # standard error may be closed
            if logging.raiseExceptions:
                traceback.print_exc()
