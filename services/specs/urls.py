"""Which URLs an http check may ask: those of this machine."""

import re
from urllib.parse import urlsplit

from services.specs.addresses import Numeric, is_never, parse
from services.specs.context import Context
from services.specs.limits import Limits
from services.specs.reasons import Refused, shown

# Printable ASCII without the backslash: browsers and libraries disagree about all else.
_PLAIN = re.compile(r"[!-\[\]-~]+")
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]*)?")
# What inet_aton(3) reads as an IPv4 address when its last part is a number: 127.1, 0x7f000001, 2130706433.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def check(url: str, limits: Limits, context: Context) -> None:
    """Refuse (`Refused`) a URL that is not absolute http(s), or whose host is not allowed.

    Every address of the host must be loopback unless `limits.health_hosts` lists it; those of
    `addresses.is_never` never pass. Whoever asks the URL later must check the address again: names change.
    """
    if not _PLAIN.fullmatch(url):
        raise Refused("healthcheck-url-not-absolute")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Refused("healthcheck-url-not-absolute") from None
    # urlsplit lets `[::1]elsewhere` pass for ::1.
    if parts.scheme not in {"http", "https"} or not host or not _AUTHORITY.fullmatch(parts.netloc.rpartition("@")[2]):
        raise Refused("healthcheck-url-not-absolute")
    if "@" in parts.netloc or port == 0 or not _is_allowed(host, limits, context):
        raise Refused(f"healthcheck-url-not-allowed ({shown(host)})")


def _is_allowed(host: str, limits: Limits, context: Context) -> bool:
    addresses = _addresses(host, context)
    if addresses is None or any(is_never(address) for address in addresses):
        return False
    if host.removesuffix(".") in {listed.lower().removesuffix(".") for listed in limits.health_hosts}:
        return True
    return bool(addresses) and all(address.is_loopback for address in addresses)


def _addresses(host: str, context: Context) -> list[Numeric] | None:
    """Return the addresses of a host; None when it is neither an address as usually written nor a host name."""
    try:
        return [parse(host)]
    except ValueError:
        pass
    name = host.removesuffix(".")
    if not _NAME.fullmatch(name) or _NUMERIC_END.fullmatch(name):
        return None
    try:
        return [parse(address) for address in context.resolve(host)]
    except ValueError:
        return None
