"""Logging, which is foreign code: an app's handlers and filters may do anything."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress

from .foreign import plain


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


def log(
    logger: logging.Logger | str,
    level: int,
    text: str,
    *args: object,
    error: BaseException | None = None,
) -> None:
    """Log a line, with the traceback of an error if one is given.

    What the arguments hold that a terminal would obey is escaped, and cut in length.

    Raises no :exc:`Exception`, whatever handlers and filters do; what they raise is
    shown as :mod:`logging` itself shows it. What is no ``Exception``, such as an
    interrupt, passes: call this after all that was taken has been given back.
    """
    try:
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        args = tuple(map(_shown, args))
        logger.log(level, text, *args, exc_info=error, stacklevel=2)
    except Exception:
        with suppress(Exception):  # standard error may be closed
            if logging.raiseExceptions:
                traceback.print_exc()
