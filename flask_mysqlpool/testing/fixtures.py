"""Fixtures for pytest: ``pytest_plugins = ["flask_mysqlpool.testing.fixtures"]``.

``mysql_rollback`` needs a fixture ``app``, as pytest-flask does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from .local_server import LocalServer
from .rollback import rolled_back


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[LocalServer]:
    """Start a temporary server for all tests, and stop it after the last one.

    ``mysql_server.url`` is for ``MYSQLPOOL_URL``. For another engine or database,
    define a fixture of the same name.
    """
    with LocalServer() as server:
        yield server


@pytest.fixture
def mysql_rollback(app: Flask) -> Iterator[None]:
    """Push an app context, and roll back all changes after the test.

    Changes that requests have committed are rolled back, too: see
    :func:`flask_mysqlpool.testing.rolled_back`.
    """
    with rolled_back(app), app.app_context():
        yield
