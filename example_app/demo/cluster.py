"""Serve the app on a Galera cluster, for ``scripts/example-cluster``.

The cluster is that of the tests, so this needs a clone, with ``tests`` on the path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clusters import HOST, PASSWORD, GaleraCluster, HAProxy

from flask_mysqlpool.testing import ServerFailed, ServerNotFound

from .serve import fail, main

#: Seconds for which a killed node is missing.
PAUSE = 15


@contextmanager
def cluster() -> Iterator[tuple[dict[str, Any], str]]:
    """Start three nodes behind HAProxy; yield the settings for them, and their name."""
    try:
        nodes = GaleraCluster()
        with nodes, HAProxy(nodes) as proxy:
            config = {
                "MYSQLPOOL_URL": f"mysql://app:{PASSWORD}@{HOST}:{proxy.port}/test",
                "MYSQLPOOL_TARGET": "primary",
                "MYSQLPOOL_READ_TIMEOUT": 10,
            }
            over = threading.Event()
            threading.Thread(target=restart, args=(nodes, over), daemon=True).start()
            try:
                place = f"{HOST}:{proxy.port}"
                yield config, f"Galera behind HAProxy on {place}{pids(nodes)}"
            finally:
                over.set()
    except (ServerNotFound, ServerFailed) as error:
        raise fail(str(error)) from None


def pids(nodes: GaleraCluster) -> str:
    return "".join(
        f"\n    node {number}, port {node.port}:   kill -9 {node.pid}"
        for number, node in enumerate(nodes.servers)
    )


def restart(nodes: GaleraCluster, over: threading.Event) -> None:
    """Restart killed nodes, after a while in which the cluster runs without them."""
    while not over.wait(1):
        for number, node in enumerate(nodes.servers):
            if node.running:
                continue
            print(f"  node {number} is gone, and comes back in {PAUSE} s", flush=True)
            if not over.wait(PAUSE):
                nodes.rejoin(number)
                print(f"  node {number} is back:{pids(nodes)}", flush=True)


if __name__ == "__main__":
    main(place=cluster)
