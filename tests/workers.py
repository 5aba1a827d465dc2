"""Processes that publish, and files as they publish them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flask_mysqlpool.workers.desired_state import DesiredState
from flask_mysqlpool.workers.status_dir import (
    StatusDir,
)
from flask_mysqlpool.workers.status_file import StatusFile


class Worker:
    """A process that evaluates what it is told, line by line."""

    def __init__(self, script: str, *args: object) -> None:
        command = [sys.executable, "-c", script, *map(str, args)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, "the worker has failed"
        return answer.rstrip("\n")

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def forked(parent: Worker) -> int:
    """The number of a child that does nothing, after all that a fork entails."""
    parent.ask("(pipe := os.pipe())")
    child = parent.ask("os.fork() or (os.write(pipe[1], b'born'), signal.pause())")
    parent.ask("os.read(pipe[0], 4)")
    return int(child)


@contextmanager
def started(script: str, *args: object) -> Iterator[Worker]:
    worker = Worker(script, *args)
    with worker.process:
        try:
            yield worker
        finally:
            worker.process.kill()


def published(folder: StatusDir, **content: Any) -> StatusFile:
    file = StatusFile(folder)
    file.write(content)
    return file


def raised(desired: DesiredState) -> DesiredState:
    return desired._replace(generation=desired.generation + 1)


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
