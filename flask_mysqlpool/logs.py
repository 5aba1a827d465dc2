"""Logging, which is foreign code: an app's handlers and filters may do anything."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress


def log(
    logger: logging.Logger | str,
    level: int,
    text: str,
    *args: object,
    error: BaseException | None = None,
) -> None:
    """Log a line, with the traceback of an error if one is given.

    Raises no :exc:`Exception`, whatever handlers and filters do; what they raise is
    shown as :mod:`logging` itself shows it. What is no ``Exception``, such as an
    interrupt, passes: call this after all that was taken has been given back.
    """
    try:
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        logger.log(level, text, *args, exc_info=error, stacklevel=2)
    except Exception:
        with suppress(Exception):  # standard error may be closed
            if logging.raiseExceptions:
                traceback.print_exc()
