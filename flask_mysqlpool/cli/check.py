"""The diagnosis: connects once, and examines what often goes wrong.

Each finding is one line: a subject, what was found and, for a problem, the fix.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from ..config import PoolConfig
from ..config.addresses import is_loopback
from ..workers.fleet import Fleet
from ..workers.mysql_server import Facts, Unanswered, connect_to
from ..workers.overview import Overview, capacity
from ..workers.status_file import try_out

OK, WARNING, FAILURE = "ok", "warning", "failure"

#: Milliseconds from which on a round trip is a problem.
SLOW = 20.0

#: The oldest servers that are supported.
_OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0)}

_FIXES = {
    1040: "raise max_connections at the server, or lower MAX_SIZE",
    1044: "GRANT the account its rights on this database",
    1045: "correct USER and PASSWORD, or the account at the server",
    1049: "create the database, or correct DATABASE",
    1129: "have the server's administrator run FLUSH HOSTS",
    1203: "raise the account's max_user_connections, or lower MAX_SIZE",
    1226: "raise the account's max_user_connections, or lower MAX_SIZE",
    1698: "no such account, or one that logs in by the unix socket: set UNIX_SOCKET"
    " (/run/mysqld/mysqld.sock), or give it a password",
    2003: "start the server, or correct HOST, PORT or UNIX_SOCKET",
    2005: "correct HOST: its name cannot be resolved",
    2026: "correct SSL_CA and SSL_MODE, or the server's certificate",
    3159: "set SSL_MODE = 'REQUIRED': the server refuses connections without TLS",
}

_FIXES_OF_FILES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room for its owner, whose quota is used up",
    errno.EIO: "look after its disk, and set STATUS_DIR to a folder on another one",
    errno.EAGAIN: "end the process that keeps it locked",
    errno.ENOLCK: "set STATUS_DIR to a folder of a file system that has locks",
    errno.ENOSYS: "set STATUS_DIR to a folder of a file system that has locks",
    errno.EROFS: "set STATUS_DIR to a folder that can be written to",
}

#: Parts of an error's text that tell more than its number; the first one counts.
_FIXES_BY_TEXT = {
    "does not speak": "correct HOST and PORT: something else listens there",
    "in clear text": "set SSL_MODE = 'VERIFY_IDENTITY' and SSL_CA, or CLEARTEXT_PLUGIN",
    "cryptography": "pip install cryptography, or use TLS (SSL_MODE = 'REQUIRED')",
    "pynacl": "pip install PyNaCl, which the account's plug-in ed25519 needs",
    "' not configured": "ALTER USER … IDENTIFIED by a plug-in that PyMySQL has, such as"
    " ed25519 (MariaDB) or caching_sha2_password (MySQL)",
    "server doesn't support it": "enable TLS at the server, or lower SSL_MODE",
    "certificate": _FIXES[2026],
    "SSL": _FIXES[2026],
    "Can't connect": _FIXES[2003],
    "not a primary": "correct TARGET or HOST",
    "not a replica": "correct TARGET or HOST",
    "a replica that is stopped": "start its replication (START REPLICA)",
    "behind its primary": "let it catch up, or raise MAX_LAG",
}

#: How an error of the session's set-up begins.
_SET_UP = "INIT_COMMAND", "SETSESSION", "CHARSET, COLLATION or SQL_MODE"

#: Said of what a server does not tell, such as one that only speaks the protocol.
_NOT_TOLD = "not known: the server does not tell"

#: What is verified, by ``SSL_MODE``; nothing in other modes.
_VERIFIED = {
    "VERIFY_CA": "the certificate is verified, the host's name is not",
    "VERIFY_IDENTITY": "certificate and host name are verified",
}


class Finding(NamedTuple):
    subject: str
    text: str
    #: What to do; empty if all is well.
    fix: str = ""
    is_failure: bool = False

    @property
    def level(self) -> str:
        return FAILURE if self.is_failure else WARNING if self.fix else OK

    @property
    def advice(self) -> str:
        """The text and, if there is something to do, that."""
        return f"{self.text} -> {self.fix}" if self.fix else self.text


def examine(config: PoolConfig, workers: int | None) -> Iterator[Finding]:
    """Examine one pool's settings and its server.

    ``workers`` is the number of processes that use it on this host; None if unknown.
    """
    if config.account is None:
        text = f"{config.server}, and the system's user has no name to log in by"
        yield Finding("settings", text, "set USER", is_failure=True)
        return
    unset = " (USER is not set)" * (not config.user)
    by = ", by CONNECT" * (config.connect is not None)
    fix = "" if config.database else "set DATABASE, which the names of tables belong to"
    none = " (DATABASE is not set)" * bool(fix)
    text = f"{config.server}{none} as {config.account}{unset}{by}"
    yield Finding("settings", text, fix)
    try:
        with connect_to(config) as server:
            facts = server.facts()
    except Unanswered as error:
        yield no_connection(error)
        return
    one_by_one = "" if facts.pipelines else "; one command at a time (PIPELINING)"
    took = f"opened in {facts.connect * 1000:.1f} ms{one_by_one}"
    yield Finding("connection", took)
    yield _latency(facts)
    yield _version(facts)
    yield _tls(config, facts)
    yield _account(facts)
    yield _read_only(facts)
    yield _idle_limit(config, facts)
    yield _capacity(config, facts, workers)


def examine_installation() -> Iterator[Finding]:
    """Examine whether another distribution has installed files over this package's.

    That of the import's name consists of an ``__init__.py``: if it is installed last,
    this package cannot be imported, and if it is uninstalled, this package has none.
    """
    package = Path(__file__).parents[1]
    for other in distributions(name="flask-mysqlpool"):
        place = str(other.locate_file(package.name))
        if os.path.exists(place) and package.samefile(place):
            text = (
                f"flask-mysqlpool {other.version}, an unrelated distribution, has its"
                " file in this package: to update or uninstall it breaks this"
            )
            again = "pip install --force-reinstall flask-pymysqlpool"
            fix = f"pip uninstall flask-mysqlpool, then {again}"
            yield Finding("installation", text, fix)


def examine_status_dir(
    site: Overview, typed: Callable[[str], str]
) -> Iterator[Finding]:
    """Examine whether workers can publish their status, and commands can read it.

    ``typed`` returns the command line of another command of the group.
    """
    fix = "set STATUS_DIR to a folder that the site's user can write to"
    status_dir = site.status_dir
    if status_dir is None:
        yield Finding("workers", "STATUS_DIR is False, so they cannot be seen", fix)
        return
    try:
        fleet = site.fleet()
        try_out(status_dir)
    except OSError as error:
        text = f"{status_dir.path}: {error.strerror or error}"
        is_failure = any(pool.max_host_connections for pool in site.pools.values())
        if is_failure:
            text += "; so MAX_HOST_CONNECTIONS cannot be kept, and nothing connects"
        yield Finding("workers", text, fix_of(error) or fix, is_failure)
        return
    # Containers that share the folder may have the same process ids.
    pids = {(each.site, each.pid) for some in site.workers.values() for each in some}
    place = status_dir.path if pids else status_dir.place()
    yield Finding("workers", f"{len(pids)} publish in {place}")
    for problem in fleet.problems:
        yield Finding("workers", problem, _fix_of_problem(problem, fleet, typed))
    for bind in filter(site.is_paused, site.pools):
        text = f"{bind} is {site.desired(bind).in_words()}: checkouts wait"
        yield Finding("workers", text, typed("resume"))


def fix_of(error: OSError) -> str:
    """Return what makes the status directory, or a file in it, usable."""
    if isinstance(error, PermissionError):
        return getattr(error, "fix", "run this as the site's user, or as root")
    return _FIXES_OF_FILES.get(error.errno or 0, "")


def _fix_of_problem(problem: str, fleet: Fleet, typed: Callable[[str], str]) -> str:
    if "belongs to" in problem:
        return f"chown {fleet.status_dir.path}, and what is in it, to the site's user"
    if problem in fleet.hidden:
        return "restart the site's workers: the file belongs to a running one"
    if problem == fleet.desired_problem:
        return f"remove it, and repeat {typed('pause')} or {typed('resume')}"
    return "remove it"


def no_connection(error: Unanswered) -> Finding:
    """Return why a server could not be queried, and what to do."""
    number, text = error.number, error.text
    known = [fix for words, fix in _FIXES_BY_TEXT.items() if words in text]
    refused = [name for name in _SET_UP if text.startswith(f"{number}: {name}: ")]
    if refused:
        fix = f"correct {refused[0]}"
    elif error.__cause__ and isinstance(error.__cause__.__cause__, socket.gaierror):
        fix = _FIXES[2005]
    else:
        fix = known[0] if known else _FIXES.get(number or 0, "")
    return Finding("connection", text, fix, is_failure=True)


def _latency(facts: Facts) -> Finding:
    milliseconds = facts.round_trip * 1000
    fix = "bring the app nearer to its database" if milliseconds >= SLOW else ""
    return Finding("latency", f"{milliseconds:.2f} ms for a round trip", fix)


def _version(facts: Facts) -> Finding:
    brand = "MariaDB" if "MariaDB" in facts.version else "MySQL"
    number = re.search(r"(\d+)\.(\d+)", facts.version.removeprefix("5.5.5-"))
    major, minor = _OLDEST[brand]
    is_old = number is not None and (int(number[1]), int(number[2])) < (major, minor)
    fix = f"upgrade to {brand} {major}.{minor} or newer" if is_old else ""
    return Finding("version", f"{brand} {facts.version}", fix)


def _tls(config: PoolConfig, facts: Facts) -> Finding:
    hosts = {place.host for place in config.places} - {"localhost"}
    # CONNECT may lead to any host by the name of this one.
    is_local = config.connect is None and all(map(is_loopback, hosts))
    mode, setting = facts.verified or (config.ssl_mode, "")
    if facts.cipher and mode in _VERIFIED:
        return Finding("TLS", f"{facts.cipher}; {_VERIFIED[mode]}")
    fix = "set SSL_MODE = 'VERIFY_IDENTITY' and SSL_CA"
    if setting:
        fix = f"have {setting} verify it, as ssl.create_default_context() does"
    setting = setting or f"SSL_MODE {mode}"
    text = f"{facts.cipher}; the server is not verified ({setting})"
    if facts.cipher is None and config.connect is not None:
        return Finding("TLS", "none; whether CONNECT encrypts is not known here")
    if facts.cipher is None:
        fix = "enable TLS at the server, and set SSL_MODE = 'VERIFY_IDENTITY'"
        text = "none: a man in the middle can read and change everything"
        if is_local:
            text = "none; nothing leaves this host"
    return Finding("TLS", text, "" if is_local else fix)


def _account(facts: Facts) -> Finding:
    weak = "mysql_native_password", "sha256_password"
    fix = ""
    if facts.plugin in weak and "MariaDB" not in facts.version:
        fix = "ALTER USER … IDENTIFIED WITH caching_sha2_password BY …"
    return Finding("authentication", f"{facts.account} by {facts.plugin}", fix)


def _read_only(facts: Facts) -> Finding:
    if facts.read_only is None:
        return Finding("read_only", _NOT_TOLD)
    if not facts.read_only:
        return Finding("read_only", "off")
    text = "on: every write fails, unless the account may override it"
    fix = "connect to the primary, or have SET GLOBAL read_only = OFF there"
    return Finding("read_only", text, fix)


def _idle_limit(config: PoolConfig, facts: Facts) -> Finding:
    """Check that the pool closes idle connections before the server does."""
    if facts.wait_timeout is None:
        return Finding("wait_timeout", _NOT_TOLD)
    limits = [config.max_idle, config.max_lifetime * 1.1]
    ours = min((limit for limit in limits if limit), default=float("inf"))
    text = (
        f"{facts.wait_timeout} s; MAX_IDLE {config.max_idle:g},"
        f" MAX_LIFETIME {config.max_lifetime:g}"
    )
    if ours < facts.wait_timeout:
        return Finding("wait_timeout", text)
    text += ": the server closes idle connections before the pool does"
    fix = "raise wait_timeout"
    if facts.wait_timeout > 1:
        most = facts.wait_timeout - 1
        fix = f"set MAX_IDLE to less than {most + 1} (1 to {most}), or {fix}"
    return Finding("wait_timeout", text, fix)


def _capacity(config: PoolConfig, facts: Facts, workers: int | None) -> Finding:
    """Compare the connections that all workers may open with the server's limits."""
    number = workers or 1
    most = number * config.max_size
    text = f"{number} worker{'s' * (number != 1)}{' seen' * (workers is not None)}"
    text += f" × MAX_SIZE {config.max_size} = {most}"
    if config.max_host_connections is not None:
        most = capacity(config, number)
        text += f", MAX_HOST_CONNECTIONS {config.max_host_connections}"
    elsewhere = facts.of_other_hosts
    others = max(facts.connected - facts.of_this_user, 0)
    if facts.max_connections is None:
        return Finding("capacity", f"{text}; max_connections is {_NOT_TOLD}")
    text += f"; max_connections {facts.max_connections}"
    text += f", of which others use {others}" * (others > 0)
    text += f", and this site on other hosts {elsewhere}" * (elsewhere > 0)
    #: Of each limit, what is in use already, and what is left.
    used = {"max_connections": others + elsewhere}
    left = {"max_connections": facts.max_connections - others - elsewhere}
    if facts.max_user_connections:
        used["max_user_connections"] = elsewhere
        left["max_user_connections"] = facts.max_user_connections - elsewhere
        text += f", max_user_connections {facts.max_user_connections}"
    if workers is None:
        text += "; the number of workers is not known"
    raised = [f"{n} to {most + used[n]} or more" for n in left if left[n] < most]
    if not raised:
        return Finding("capacity", text)
    fix = (
        f"raise {' and '.join(raised)}, lower MAX_SIZE, or set MAX_HOST_CONNECTIONS to"
        f" {max(min(left.values()), 1)}"
    )
    return Finding("capacity", text, fix, is_failure=True)
