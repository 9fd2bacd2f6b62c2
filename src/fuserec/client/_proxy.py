"""Which proxy of the environment a call goes through: none to this machine, and otherwise the one curl would take."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fuserec.errors import InvalidRequest

# Upper-case HTTP_PROXY is left out, as by curl: a CGI program has it from whoever calls.
_VARIABLES: Final = {
    "http": ("http_proxy", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}
_URL: Final = re.compile(r"(?:http://)?(?:([^@/]*)@)?([^/:\s@]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?")


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        host: Its name or address.
        port: Its port.
        user: `name:password` for it, as the variable has them.
    """

    host: str
    port: int
    user: str | None


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this machine: `localhost`, a name below it, 127.0.0.0/8 or ::1."""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_direct(host: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether calls to a host pass by every proxy."""
    if is_loopback(host):
        return True
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    return any(_covers(entry, name, address) for entry in re.split(r"[,\s]+", listed.lower()) if entry)


def proxy_of(scheme: str, host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for a host, None where there is none.

    Args:
        scheme: `http` or `https`.
        host: Without a port.
        environment: Where the variables are.

    Raises:
        InvalidRequest: It is of a kind that this client does not speak to.
    """
    for name in _VARIABLES[scheme]:
        url = environment.get(name, "")
        if not url:
            continue
        if is_direct(host, environment):
            return None
        found = _URL.fullmatch(url)
        if found is None or not 0 < int(found[3] or 1080) < 65_536:
            # It may hold a password.
            raise InvalidRequest(f"invalid {name}: must be http://host:port to reach {host}, or name it in no_proxy")
        return Proxy(found[2].strip("[]"), int(found[3] or 1080), found[1])
    return None


def _covers(entry: str, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if entry == "*":
        return True
    entry = entry.strip("[]").strip(".")
    if address is None:
        return bool(entry) and (name == entry or name.endswith(f".{entry}"))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
