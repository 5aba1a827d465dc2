"""What some interpreters and systems lack is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import Sql, until

from flask_mysqlpool.testing import LocalServer

#: PyPy has no PyDLL; a Python built without libffi has no ctypes at all.
WITHOUT = {
    "PyDLL": "import ctypes; vars(ctypes).pop('PyDLL', None)",
    "ctypes": "import sys; sys.modules['ctypes'] = None",
}

CHECKOUTS = """
import sys
from flask_mysqlpool import Pool, PoolConfig
from flask_mysqlpool.pool.driver import sockets

assert sockets._POLL is None
pool = Pool(PoolConfig.from_mapping({"URL": sys.argv[1], "MAX_SIZE": 1}))
for _ in sys.stdin:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        print(cursor.fetchone()[0], flush=True)
"""


@pytest.mark.one_engine
@pytest.mark.parametrize("lack", WITHOUT)
def test_a_pool_without_ctypes_notices_a_killed_connection(
    server: LocalServer, sql: Sql, lack: str
) -> None:
    script = f"{WITHOUT[lack]}\n{CHECKOUTS}"
    with subprocess.Popen(
        [sys.executable, "-c", script, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def checkout() -> int:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return int(process.stdout.readline())  # type: ignore[union-attr]

        first = checkout()
        assert checkout() == first
        sql("KILL %s", first)
        listed = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
        until(lambda: not sql(listed, first))
        assert checkout() != first


WINDOWS = """
import os, sys

sys.modules["fcntl"] = None
del os.fork, os.register_at_fork

from flask_mysqlpool import testing
import flask_mysqlpool.testing.fixtures

with testing.FaultProxy("127.0.0.1", 9):
    pass
try:
    testing.LocalServer()
except testing.ServerNotFound as error:
    print(error)
"""


def test_testing_is_imported_without_fcntl_and_a_server_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "LocalServer needs Linux or macOS: this Python has no module fcntl\n"
    )
