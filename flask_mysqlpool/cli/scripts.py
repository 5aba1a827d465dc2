"""The execution of script files, with its progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import click
from pymysql.err import MySQLError

from ..config import PoolConfig
from ..config.settings import altered
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.logs import plain
from ..pool.sql.scripts import Script
from ..workers.mysql_server import Unanswered

#: A pool of one connection, which is no worker's and has all the time it needs.
_SETTINGS: dict[str, Any] = {
    **{"min_size": 0, "max_size": 1, "max_host_connections": None},
    **{"read_timeout": None, "write_timeout": None, "leak_threshold": 0},
    "autocommit": True,
}
#: How often the progress is shown, at most.
_STEPS = 200


def execute(config: PoolConfig, files: Iterable[str]) -> Iterator[str]:
    """Execute scripts on one connection, and yield a line about each.

    The first error ends them, as one of click that tells where.
    """
    with closing(Pool(altered(config, **_SETTINGS))) as pool:
        try:
            connection = pool.connection()
        except MySQLError as error:
            text = f"cannot connect to {config.server}: {Unanswered(error)}"
            raise click.ClickException(text) from None
        with connection:
            for file in files:
                yield _execute(connection, file)


def _execute(connection: PooledConnection, file: str) -> str:
    """Execute a script, and return the line about it."""
    name = plain(click.format_filename(file))
    with click.open_file(file, "rb") as opened:
        script = Script(connection, opened.read())
    try:
        if sys.stderr.isatty():
            _show_progress(script, name)
        else:
            script.execute()
    except MySQLError as error:
        text = f"{name}, line {script.line}: {Unanswered(error)}"
        raise click.ClickException(text) from None
    return f"{name}: {script.count} statement{'s' * (script.count != 1)}"


def _show_progress(script: Script, name: str) -> None:
    """Execute a script, with a line on standard error that is rewritten."""
    steps = max(script.length // _STEPS, 1)
    shown = 0
    with click.progressbar(
        length=script.length, label=name, file=sys.stderr, update_min_steps=steps
    ) as bar:
        for _ in script.run():
            bar.update(script.position - shown)
            shown = script.position
        bar.update(script.length - shown)
