"""A program in a private folder, both of which end with the process that started them.

A shell, the watchdog, reads from a pipe whose other end only that process has. The
kernel closes the pipe when the process ends, however it ends. Then the watchdog kills
the program and removes the folder.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import weakref
from collections.abc import Sequence

CLOSING_SECONDS = 30

# Each line names the process group to kill, or none once the program has been reaped:
# its number may then be another's. A dying program may still create a file.
WATCHDOG = """
trap '' INT TERM HUP
while read -r group; do last=$group; done
[ -z "$last" ] || kill -s KILL -- "-$last"
for attempt in 1 2 3 4 5; do rm -rf "$0" && break; sleep 1; done
"""
# Tells the watchdog its group before it becomes the program, so that this process may
# be killed at any time in between.
PROGRAM = 'echo $$; exec "$@" >&2'


class Supervisor:
    """Starts, signals and kills one program at a time, in a private folder.

    :param base: the folder in which the private folder is created.
    """

    folder: str
    """The private folder, removed when the supervisor ends."""

    def __init__(self, base: str) -> None:
        self._owner = os.getpid()
        self._program: subprocess.Popen[bytes] | None = None
        self.folder = os.path.join(base, f"fmp-{secrets.token_hex(6)}")
        # In its own session, so that Ctrl-C ends the tests first.
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Unbuffered: a buffer has a lock, which another thread may hold at a fork.
            bufsize=0,
            start_new_session=True,
        )
        assert self._watchdog.stdin is not None
        self._pipe = self._watchdog.stdin
        _supervisors.add(self)
        # Not earlier, so that the folder is removed if this process is killed now.
        os.mkdir(self.folder, 0o700)

    def start(self, command: Sequence[str]) -> int:
        """Start a program with its output in the file ``log``; return its pid."""
        self._require_owner()
        with open(os.path.join(self.folder, "log"), "wb") as log:
            self._program = subprocess.Popen(
                ["/bin/sh", "-c", PROGRAM, "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=self._pipe,
                stderr=log,
                cwd=self.folder,
                # A group of its own: an installation is a script with children.
                start_new_session=True,
            )
        return self._program.pid

    def poll(self) -> int | None:
        """Return the exit status of the program, or None while it runs."""
        self._require_owner()
        status = self._program.poll() if self._program else 0
        if status is not None:
            self._pipe.write(b"\n")
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it still runs."""
        self._require_owner()
        if self._program is not None:
            self._program.send_signal(number)

    def close(self) -> None:
        """Kill the program and remove the folder; does nothing in a forked child."""
        if self._owner == os.getpid():
            self._pipe.close()
            self._watchdog.wait(CLOSING_SECONDS)
            # Not earlier: the watchdog needs the number of its group.
            if self._program is not None:
                self._program.wait(CLOSING_SECONDS)

    def detach_after_fork(self) -> None:
        """Close the child's copy of the pipe, which would keep the watchdog waiting."""
        self._pipe.close()
        for process in (self._watchdog, self._program):
            if process is not None:
                process.returncode = 0

    def _require_owner(self) -> None:
        if self._owner != os.getpid():
            raise RuntimeError(f"this server belongs to process {self._owner}")


_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()


def _after_fork() -> None:
    for supervisor in list(_supervisors):
        supervisor.detach_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
