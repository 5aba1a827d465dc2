"""Addresses of servers: the syntax of ``HOST``."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """The address of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(hosts: str, port: int) -> tuple[Place, ...]:
    """Parse a valid ``HOST``."""
    return tuple(_place(host.strip(), port) for host in hosts.split(","))


def _place(host: str, port: int) -> Place:
    if host.startswith("["):
        host, _, given = host[1:].partition("]")
        return Place(host, int(given[1:] or port))
    if host.count(":") == 1:
        host, _, given = host.partition(":")
        return Place(host, int(given))
    return Place(host, port)
