"""Addresses of servers: the syntax of ``HOST``."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

ONE_OF_SEVERAL = re.compile(
    r"(?:(?P<name>[^\s\x00-\x1f/@\[\]:,]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
"""One of several hosts, which are separated by commas."""


class Place(NamedTuple):
    """The address of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(hosts: str, port: int) -> tuple[Place, ...]:
    """Parse a valid ``HOST``."""
    if "," not in hosts:
        return (Place(hosts, port),)
    found = ONE_OF_SEVERAL.finditer(hosts)
    return tuple(Place(f["name"] or f["ipv6"], int(f["port"] or port)) for f in found)


def is_loopback(address: str) -> bool:
    """Tell whether the text is an IP address of this host's loopback interface."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
