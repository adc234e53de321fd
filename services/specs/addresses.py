"""Numeric addresses as the kernel connects to them, and those that no check may ever ask."""

import ipaddress
from typing import TypeAlias

Numeric: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The metadata services of clouds that are not link-local: AWS, Google (IPv6), Alibaba, Oracle, Azure.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)


def parse(text: str) -> Numeric:
    """Return an address; `::ffff:127.0.0.1` is 127.0.0.1, for that is where the kernel connects to.

    ValueError for anything else, and for an address with a zone (`fe80::1%eth0`).
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.scope_id is not None:
        raise ValueError(f"an address with a zone: {text!r}")
    return address.ipv4_mapped or address


def is_never(address: Numeric) -> bool:
    """Tell whether an address that `parse` gave must not be asked, whatever the settings list.

    Link-local, multicast, unspecified, metadata services, and what a gateway translates to one of these.
    """
    if isinstance(address, ipaddress.IPv6Address):
        behind = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.sixtofour
        if behind is not None and is_never(behind):
            return True
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA
