"""Records as workers publish them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask

from flask_mysqlpool import PoolConfig
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.status import WorkerStatus, identity
from flask_mysqlpool.workers.status_dir import STATUS, StatusDir
from flask_mysqlpool.workers.status_file import StatusFile


def config_of(server: LocalServer) -> PoolConfig:
    return PoolConfig.from_mapping({"URL": server.url})


POOLS = {"default": PoolConfig.from_mapping({})}


def complete(**about: Any) -> dict[str, Any]:
    """A record with every field that a worker of today needs."""
    counts = dict.fromkeys(
        ("size", "idle", "in_use", "connecting", "waiting"), 0
    ) | dict.fromkeys(("checkouts", "timeouts", "opened", "discarded"), 0)
    known: dict[str, Any] = {"pid": 1, "generation": 0, "outdated": 0, "updated": 0.0}
    known |= {"paused": False, "connections": []}
    return {**identity("shop", "default", POOLS["default"]), **counts, **known, **about}


def worker(**about: Any) -> WorkerStatus:
    """What a reader makes of such a record."""
    by_reader = {key: about.pop(key) for key in ("name", "heard") if key in about}
    status = WorkerStatus(**complete(**about))
    vars(status).update({"name": "1"} | by_reader)
    return status


def identity_of(app: Flask, bind: str = "default") -> dict[str, str | None]:
    """What a worker of this app says that its pool is."""
    [state] = app.extensions["mysqlpool"].values()
    return identity(app.name, bind, state.published()[bind])


def heard_from(app: Flask, seconds: float, **about: Any) -> StatusFile:
    """A worker that published this, and so many seconds ago was alive."""
    folder = folder_of(app)
    file = StatusFile(folder)
    file.write(complete(**identity_of(app) | about))
    path = Path(folder.path, file.id + STATUS)
    os.utime(path, (0, path.stat().st_mtime - seconds))
    return file


def folder_of(app: Flask) -> StatusDir:
    [state] = app.extensions["mysqlpool"].values()
    assert isinstance(state.status_dir, StatusDir)
    return state.status_dir
