"""Which addresses of the network may be connected to."""

from __future__ import annotations

import ipaddress
import socket
import threading

from ..errors import PromptError

_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet's, and leads nowhere else.

    An IPv6 address that stands for an IPv4 one is what that is.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in _IPV6_UNICAST or found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def resolved(host: str, port: int, timeout: float) -> list[str]:
    """The addresses of a host, in the order in which the system would try them.

    Raises:
        PromptError: it has none, or finding them took too long.
    """
    found: list[str] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # a label of the name is empty or too long
            failed.append(error)

    thread = threading.Thread(target=ask, name="vcls-resolve", daemon=True)  # nothing ends it before its time
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise PromptError(f"finding the address of {host!r} took too long.")
    if failed or not found:
        raise PromptError(f"the host {host!r} is not found.")
    return found
