"""A watchdog process that owns a temporary server and ends it with the test process.

:class:`Supervisor` is used in the test process; the script below it runs as a separate
process, which is the parent of the server and reads requests from a pipe. The kernel
closes the pipe when the test process ends, however it ends; then the script kills the
server and removes its folder. As the parent, it cannot kill an unrelated process that
has got the same process id.
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
    """The client of the watchdog, which starts, signals and kills one program.

    :param base: the folder in which the private folder is created.
    """

    folder: str
    """The private folder, removed when the supervisor ends."""

    def __init__(self, base: str) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        # In its own session, so that Ctrl-C ends the tests first.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Unbuffered: a buffer has a lock, which another thread may hold at a fork.
            bufsize=0,
            start_new_session=True,
        )
        _supervisors.add(self)
        self.folder = self._ask("folder")

    def start(self, command: Sequence[str]) -> int:
        """Start a program with its output in the file ``log``; return its pid."""
        pid: int = self._ask("start", list(command))
        return pid

    def poll(self) -> int | None:
        """Return the exit status of the program, or None while it runs."""
        status: int | None = self._ask("poll")
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it still runs."""
        self._ask("signal", number)

    def close(self) -> None:
        """Kill the program and remove the folder; does nothing in a forked child."""
        if self._owner != os.getpid() or self._process.returncode is not None:
            return
        with self._lock:
            self._close_pipes()
            self._process.wait(CLOSING_SECONDS)

    def detach_after_fork(self) -> None:
        """Close the child's copy of the pipe, which would keep the watchdog alive."""
        self._close_pipes()
        self._process.returncode = 0

    def _close_pipes(self) -> None:
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


def _after_fork() -> None:
    for supervisor in list(_supervisors):
        supervisor.detach_after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Script:
    """The watchdog process: runs one program at a time, and owns the folder."""

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
        # Reap at once: a killed server would look alive as a zombie.
        if self._child:
            self._child.poll()

    def clean_up(self) -> None:
        if self._child and self._child.poll() is None:
            # The group, because an installation is a shell script with children.
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def main() -> None:
    """Serve requests until standard input ends."""
    script = _Script(sys.argv[1])
    signal.signal(signal.SIGCHLD, script.reap)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN, which the program would inherit: it must receive SIGTERM.
        signal.signal(number, lambda *_: None)
    try:
        script.serve()
    finally:
        script.clean_up()


if __name__ == "__main__":
    main()
