"""The process that owns a throw-away server, so that nothing outlives its user.

Both ends of the conversation are here: :class:`Supervisor` in the test process,
and below it the script that runs as a process of its own. The script is the
parent of the server and reads requests from a pipe. When the pipe closes, which
the kernel sees to however the test process ends, the script kills the server
and removes its folder. Being the parent, it can never kill a process that has
merely inherited the number.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any

CLOSING_SECONDS = 30


class Supervisor:
    """The test process's end: ask for a program to be started, stopped, killed.

    :param base: the folder in which the private folder is made.
    """

    folder: str
    """The private folder, which lives as long as the supervisor."""

    def __init__(self, base: str) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        # Its own session: Ctrl-C is for the tests, not for their server.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A buffer has a lock, which may be held while another thread forks.
            bufsize=0,
            start_new_session=True,
        )
        _supervisors.add(self)
        self.folder = self._ask("folder")

    def start(self, command: Sequence[str]) -> int:
        """Start a program, its output in the file ``log``; return its pid."""
        pid: int = self._ask("start", list(command))
        return pid

    def poll(self) -> int | None:
        """The exit status of the program, ``None`` while it runs."""
        status: int | None = self._ask("poll")
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens if it has ended."""
        self._ask("signal", number)

    def close(self) -> None:
        """Kill the program, remove the folder. Not from a forked child."""
        if self._owner != os.getpid() or self._process.returncode is not None:
            return
        with self._lock:
            self._hang_up()
            self._process.wait(CLOSING_SECONDS)

    def disown(self) -> None:
        """In a forked child: let go of the pipe, which is the parent's life line."""
        self._hang_up()
        self._process.returncode = 0

    def _hang_up(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, *request: Any) -> Any:
        if self._owner != os.getpid():
            raise RuntimeError(f"this server belongs to process {self._owner}")
        with self._lock:
            answer = self._exchange(json.dumps(request).encode() + b"\n")
        if not answer:
            raise RuntimeError("the supervisor of the server has died")
        value, error = json.loads(answer)
        if error:
            raise RuntimeError(error)
        return value

    def _exchange(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()


_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()


def _disown_all() -> None:
    for supervisor in list(_supervisors):
        supervisor.disown()


os.register_at_fork(after_in_child=_disown_all)


class _Script:
    """The other end: one program at a time, and the folder."""

    def __init__(self, base: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="fmp-", dir=base)
        self._child: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        for line in sys.stdin.buffer:
            name, *arguments = json.loads(line)
            try:
                answer = [getattr(self, f"do_{name}")(*arguments), None]
            except Exception as error:
                answer = [None, str(error)]
            print(json.dumps(answer), flush=True)

    def do_folder(self) -> str:
        return self._folder

    def do_start(self, command: list[str]) -> int:
        with open(os.path.join(self._folder, "log"), "wb") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        return self._child.pid

    def do_poll(self) -> int | None:
        return self._child.poll() if self._child else 0

    def do_signal(self, number: int) -> None:
        if self._child:
            self._child.send_signal(number)

    def reap(self, *_: object) -> None:
        # At once, so that a killed server does not look alive as a zombie.
        if self._child:
            self._child.poll()

    def clean_up(self) -> None:
        if self._child and self._child.poll() is None:
            # An installation is a shell script: the group holds its children.
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def main() -> None:
    """Run as the supervisor, until standard input ends."""
    script = _Script(sys.argv[1])
    signal.signal(signal.SIGCHLD, script.reap)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A function, since a program inherits SIG_IGN, and must hear SIGTERM.
        signal.signal(number, lambda *_: None)
    try:
        script.serve()
    finally:
        script.clean_up()


if __name__ == "__main__":
    main()
