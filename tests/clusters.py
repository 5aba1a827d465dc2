"""Clusters of throw-away servers, on the loopback interface and in private folders.

Like the servers that they are made of, they go with the process that asked for them.
What they need besides may be missing: then they raise
:exc:`~flask_mysqlpool.testing.ServerNotFound`, which says what to install.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeVar

import pymysql

from flask_mysqlpool.testing import LocalServer, ServerNotFound
from flask_mysqlpool.testing.local_server import _until
from flask_mysqlpool.testing.server_binaries import find_engine
from flask_mysqlpool.testing.watchdog import Supervisor

HOST = "127.0.0.1"
#: Of the user app, the same everywhere.
PASSWORD = secrets.token_hex(16)
#: Where ``scripts/mysql-server`` puts MySQL, unless it is installed.
MYSQL_ROOT = os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT")
#: Ports that the system gives to no outgoing connection while a server is down.
PORTS = range(15_000, 32_000)
SECONDS = 30.0

PROVIDERS = (
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
)
#: Where ``scripts/_setup.sh`` puts HAProxy, so that no service is started.
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
HAPROXY = f"{CACHE}/flask_mysqlpool/haproxy/usr/sbin/haproxy"

Rows = tuple[tuple[Any, ...], ...]
S = TypeVar("S", bound="_Several")
P = TypeVar("P", bound="_Proxy")


def find_galera() -> str:
    """The library that makes a cluster of MariaDB servers."""
    find_engine("mariadb")
    for provider in PROVIDERS:
        if os.path.exists(provider):
            return provider
    raise ServerNotFound("no Galera: on Debian, install galera-4")


def find_haproxy() -> str:
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which("haproxy", path=f"{path}:/usr/sbin") or shutil.which(HAPROXY)
    if found is None:
        raise ServerNotFound("no HAProxy: scripts/test unpacks Debian's")
    return found


def find_mysql() -> str:
    return find_engine("mysql", MYSQL_ROOT).program


def find_router() -> str:
    """MySQL's router, from inside of the folder that MySQL is in."""
    find_mysql()
    if os.path.exists(f"{MYSQL_ROOT or ''}/usr/bin/mysqlrouter"):
        return "/usr/bin/mysqlrouter"
    raise ServerNotFound("no MySQL Router where MySQL is")


def missing(*find: Callable[[], str]) -> str:
    """What cannot be found, for a test to be skipped; nothing if all is there."""
    try:
        for one in find:
            one()
    except ServerNotFound as error:
        return str(error).partition(". ")[0]
    return ""


def run(server: LocalServer, *statements: str, **options: Any) -> Rows:
    """What the last of the statements answers."""
    with server.connect(**options) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return tuple(cursor.fetchall())


def free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found.add(port)
    return list(found)


class _Several:
    """Some servers with the same accounts, which are closed together."""

    def __init__(self, engine: str, size: int) -> None:
        root = MYSQL_ROOT if engine == "mysql" else None
        self.servers = [
            LocalServer(engine=engine, root=root, password=PASSWORD)
            for _ in range(size)
        ]

    def __enter__(self: S) -> S:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """End the servers, and remove what there is of them."""
        for server in self.servers:
            server.close()

    @property
    def hosts(self) -> str:
        """As the setting ``HOST`` wants them."""
        return ",".join(f"{HOST}:{server.port}" for server in self.servers)


#: Hands over nothing: a node that has all but the last transactions needs no more, but
#: no node is let in without such a program.
STATE_TRANSFER = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --role) role=$2 ;;
    --address) address=$2 ;;
    --datadir) note=${2%/}/position ;;
    --gtid) position=$2 ;;
    --parent) parent=$2 ;;
    --bypass) bypass=yes ;;
    --mysqld-args) break ;;
    esac
    shift
done
case $role in
joiner)
    rm -f "$note"
    echo "ready $note"
    until [ -e "$note" ]; do
        kill -0 "$parent" || exit 1
        sleep 0.02
    done
    cat "$note"
    ;;
donor)
    # MariaDB 11 writes an account in here, and gives up if that is not read.
    cat >/dev/null
    [ "$bypass" ] || exit 1
    echo "$position" >"$address.new"
    mv "$address.new" "$address"
    echo "done $position"
    ;;
esac
"""

#: After so long a silence a node is taken for dead, and the others go on without it.
SUSPECT_SECONDS = 1.0
PROVIDER_OPTIONS = {
    "gcache.size": "32M",
    "gcache.page_size": "4M",
    "evs.keepalive_period": "PT0.2S",
    "evs.inactive_check_period": "PT0.1S",
    "evs.suspect_timeout": f"PT{SUSPECT_SECONDS}S",
    "evs.inactive_timeout": f"PT{5 * SUSPECT_SECONDS}S",
    "evs.install_timeout": f"PT{5 * SUSPECT_SECONDS}S",
    "pc.recovery": "false",
}


class GaleraCluster(_Several):
    """Three nodes of MariaDB, each of which takes writes."""

    def __init__(self, size: int = 3) -> None:
        self._provider = find_galera()
        super().__init__("mariadb", size)
        ports = free_ports(2 * size)
        self._group, self._transfer = ports[:size], ports[size:]
        self._tools = Supervisor(gettempdir())
        program = Path(self._tools.folder, "wsrep_sst_nothing")
        program.write_text(STATE_TRANSFER)
        program.chmod(0o700)
        self._path = os.environ["PATH"]

    def stop(self) -> None:
        os.environ["PATH"] = self._path
        super().stop()
        self._tools.close()

    def start(self) -> None:
        """Start all of them; returns when each is ready."""
        first, *others = self.servers
        # A node looks for the program each time that it starts.
        os.environ["PATH"] = f"{self._tools.folder}:{self._path}"
        for server in self.servers:
            self._create(server)
        first.restart([*self._options(0), "--wsrep-new-cluster"])
        first.stop()
        for server in others:
            # Whole, and of the same age: then what is missing is sent by itself.
            shutil.rmtree(f"{server.folder}/data")
            left_out = shutil.ignore_patterns("galera.cache", "gvwstate.dat")
            shutil.copytree(
                f"{first.folder}/data", f"{server.folder}/data", ignore=left_out
            )
        first.start()
        for node, server in enumerate(others, 1):
            server.restart(self._options(node))
            self.wait_until_ready(node)
        # From now on it joins the others, as they do.
        first.options = tuple(self._options(0))

    def _create(self, server: LocalServer) -> None:
        server.start()
        if server is self.servers[0]:
            # Without a password and without any right, for HAProxy's checks.
            run(server, f"CREATE USER haproxy@'{HOST}'")
        server.stop()

    def _options(self, node: int) -> list[str]:
        addresses = ",".join(f"{HOST}:{port}" for port in self._group)
        provider = PROVIDER_OPTIONS | {
            "gmcast.listen_addr": f"tcp://{HOST}:{self._group[node]}",
            "ist.recv_addr": f"{HOST}:{self._transfer[node]}",
        }
        return [
            "--wsrep-on=ON",
            f"--wsrep-provider={self._provider}",
            f"--wsrep-provider-options={';'.join(map('='.join, provider.items()))}",
            # With this plugin of MariaDB 11, no option can be changed afterwards.
            "--loose-plugin-wsrep-provider=OFF",
            "--wsrep-cluster-name=test",
            f"--wsrep-cluster-address=gcomm://{addresses}",
            f"--wsrep-node-name=node{node}",
            f"--wsrep-node-address={HOST}",
            "--wsrep-sst-method=nothing",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-doublewrite=1",
        ]

    def kill(self, node: int) -> None:
        """As ``kill -9`` does."""
        self.servers[node].kill()

    def freeze(self, node: int) -> None:
        """Let it hang with its sockets open, as a machine does that is overloaded."""
        self.servers[node].pause()

    def isolate(self, node: int) -> None:
        """Cut it off from the other nodes; clients reach it as before."""
        self._set(node, "gmcast.isolate=1")

    def _set(self, node: int, option: str) -> None:
        run(self.servers[node], f"SET GLOBAL wsrep_provider_options = '{option}'")

    def rejoin(self, node: int) -> None:
        """Undo what was done to the node, and wait until the cluster is whole."""
        server = self.servers[node]
        if not server.running:
            position = self._position(node)
            server.restart([*self._options(node), f"--wsrep-start-position={position}"])
        else:
            server.resume()
            self._set(node, "gmcast.isolate=0")
        self.wait_until_ready(node)

    def _position(self, node: int) -> str:
        """The last transaction that the data of a killed server hold."""
        server = self.servers[node]
        options = [*self._options(node), "--wsrep-recover"]
        command = server._engine.serve(server.folder, server.port, options)
        owner = server._owner()
        owner.start(command)
        _until(lambda: owner.poll() is not None, SECONDS)
        found = re.findall(r"Recovered position: *(\S+?:-?\d+)", server.log)
        assert found, server.log
        return str(found[-1])

    def wait_until_ready(self, node: int) -> None:
        """Until it is, and every node that runs knows of every other."""
        running = [server for server in self.servers if server.running]
        wanted = {
            "wsrep_ready": "ON",
            "wsrep_local_state_comment": "Synced",
            "wsrep_cluster_size": str(len(running)),
        }
        if not _until(
            lambda: all(self.status(one) == wanted for one in running), SECONDS
        ):
            raise RuntimeError(
                f"node {node} is not ready; {[self.status(one) for one in running]};"
                f" its log: {self.servers[node].log[-3000:]}"
            )

    def status(self, server: LocalServer) -> dict[str, str]:
        names = "wsrep_ready", "wsrep_local_state_comment", "wsrep_cluster_size"
        statement = f"SHOW GLOBAL STATUS WHERE Variable_name IN {names}"
        with suppress(pymysql.err.MySQLError):
            return dict(run(server, statement, read_timeout=5))
        return {}


class Replication(_Several):
    """A primary of MySQL and two replicas, which follow it by GTIDs."""

    def __init__(self) -> None:
        super().__init__("mysql", 3)
        self.primary = self.servers[0]

    @property
    def replicas(self) -> list[LocalServer]:
        return [server for server in self.servers if server is not self.primary]

    def start(self) -> None:
        for number, server in enumerate(self.servers, 1):
            server.options = (
                f"--server-id={number}",
                "--log-bin=log",
                "--gtid-mode=ON",
                "--enforce-gtid-consistency=ON",
                # As for what InnoDB writes: it survives a kill -9.
                "--sync-binlog=0",
            )
            server.start()
            # The accounts are everywhere by now, and not to be replicated.
            run(server, "RESET BINARY LOGS AND GTIDS")
        for replica in self.replicas:
            run(replica, "SET GLOBAL super_read_only = ON")
            self.follow(replica)

    def follow(self, replica: LocalServer, delay: int = 0) -> None:
        """Have it follow the primary, so many seconds behind."""
        run(
            replica,
            "STOP REPLICA",
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{HOST}',"
            f" SOURCE_PORT = {self.primary.port}, SOURCE_USER = 'app',"
            f" SOURCE_PASSWORD = '{PASSWORD}', SOURCE_AUTO_POSITION = 1,"
            f" SOURCE_DELAY = {delay}, SOURCE_CONNECT_RETRY = 1,"
            " GET_SOURCE_PUBLIC_KEY = 1",
            "START REPLICA",
        )

    def promote(self, node: int) -> float:
        """Make another one the primary; when it could be written to."""
        demoted, self.primary = self.primary, self.servers[node]
        run(demoted, "SET GLOBAL super_read_only = ON")
        self.catch_up(self.primary, demoted)
        run(
            self.primary,
            "STOP REPLICA",
            "RESET REPLICA ALL",
            "SET GLOBAL super_read_only = OFF",
            "SET GLOBAL read_only = OFF",
        )
        writable = time.monotonic()
        for replica in self.replicas:
            if replica.running:
                self.follow(replica)
        return writable

    def repair(self) -> None:
        """Have all of them run, and all but the primary follow it at once."""
        for server in self.servers:
            server.start()
        run(self.primary, "SET GLOBAL super_read_only = OFF")
        run(self.primary, "SET GLOBAL read_only = OFF")
        for replica in self.replicas:
            run(replica, "SET GLOBAL super_read_only = ON")
            self.follow(replica)
            self.catch_up(replica)

    def catch_up(self, replica: LocalServer, source: LocalServer | None = None) -> None:
        """Wait until it has all that the primary, or another, has by now."""
        [[done]] = run(source or self.primary, "SELECT @@gtid_executed")
        wait = f"SELECT WAIT_FOR_EXECUTED_GTID_SET('{done}', {SECONDS})"
        [[too_late]] = run(replica, wait)
        assert not too_late


def adapted(name: str, places: dict[str, str], servers: Sequence[LocalServer]) -> str:
    """A configuration file of the documentation, for these places and servers."""
    text = Path(__file__).parents[1].joinpath("docs/_static/cluster", name).read_text()
    servers_in_it = {
        f"192.0.2.{number}:3306": f"{HOST}:{server.port}"
        for number, server in enumerate(servers, 1)
    }
    for old, new in (places | servers_in_it).items():
        assert old in text, f"{name}: {old}"
        text = text.replace(old, new)
    return text


class _Proxy:
    """A program of its own that forwards connections."""

    def __init__(self, folder: str) -> None:
        self.port = 0
        self._supervisor = Supervisor(folder)
        self.folder = self._supervisor.folder

    def __enter__(self: P) -> P:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self._supervisor.close()

    def _run(self, command: Sequence[str], started: Callable[[], bool]) -> None:
        self.pid = self._supervisor.start(command)
        if not _until(started, SECONDS):
            raise RuntimeError(Path(self.folder, "log").read_text())


class HAProxy(_Proxy):
    """In front of a Galera cluster: all go to its first node that is ready."""

    def __init__(self, cluster: GaleraCluster) -> None:
        self._program = find_haproxy()
        self._cluster = cluster
        super().__init__(gettempdir())

    def start(self) -> None:
        [self.port] = free_ports(1)
        path = Path(self.folder, "haproxy.cfg")
        places = {"/run/haproxy": self.folder, f"{HOST}:3306": f"{HOST}:{self.port}"}
        path.write_text(adapted("haproxy.cfg", places, self._cluster.servers))
        count = len(self._cluster.servers)
        command = [self._program, "-db", "-f", str(path)]
        self._run(command, lambda: len(self.ready()) == count)

    def ready(self) -> set[int]:
        """The nodes that it finds to be ready."""
        with socket.socket(socket.AF_UNIX) as admin, suppress(OSError):
            admin.settimeout(5)
            admin.connect(f"{self.folder}/admin.sock")
            admin.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
            up = re.findall(r"mysql,db(\d+),.*?,UP,", answer)
            return {int(number) - 1 for number in up}
        return set()


class Router(_Proxy):
    """MySQL's router with a fixed list: all go to the first that is within reach."""

    def __init__(self, destinations: Sequence[LocalServer]) -> None:
        self._program = find_router()
        self._destinations = destinations
        super().__init__(f"{MYSQL_ROOT or ''}/tmp")

    def start(self) -> None:
        [self.port] = free_ports(1)
        inside = self.folder.removeprefix(MYSQL_ROOT or "")
        folders = ("/var/log/mysqlrouter", "/run/mysqlrouter", "/var/lib/mysqlrouter")
        places = dict.fromkeys(folders, inside) | {"= 3306": f"= {self.port}"}
        path = Path(self.folder, "router.conf")
        path.write_text(adapted("mysqlrouter.conf", places, self._destinations))
        command = [self._program, "--user=root", "-c", f"{inside}/router.conf"]
        if MYSQL_ROOT:
            command = ["chroot", MYSQL_ROOT, *command]
        self._run(command, self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0
