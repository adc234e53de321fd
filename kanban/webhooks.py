"""A signed POST to an address that strangers choose: where it may go, and how it is made within ten seconds.

Knows no Django. Nothing is followed and nothing stands between: no redirect, no proxy, no second look-up of a name.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from services.probes.answers import Head, Malformed
from services.specs.addresses import Numeric, is_never, parse

WITHIN_S = 10.0
MAX_ADDRESSES = 4
# Read on after the answer is known, so that its server is not left with a broken pipe.
MAX_BODY = 64 * 1024
LINGER_S = 1.0
_PIECE = 16 * 1024
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?\.?")

_Found: TypeAlias = tuple[socket.AddressFamily, str]


class Unusable(ValueError):
    """No address for a webhook; the text says why, in one sentence for a person."""


class Failed(Exception):
    """It did not get there; the text says why in one line. `status` is what was answered, None without an answer."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a webhook goes: `host` is a name in lower case or a numeric address, `path` what is asked for there."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Return the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Return the address without its path, which may be a secret."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def endpoint(url: str) -> Endpoint:
    """Read the address of a webhook; raises Unusable."""
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", url):
        raise Unusable("An address has 1 to 1000 plain characters and no spaces.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise Unusable("This address cannot be read. Give one such as https://example.org/hook.") from None
    if parts.scheme.lower() not in {"http", "https"} or not host:
        raise Unusable("An address begins with https:// or http:// and names a host.")
    if parts.username is not None or parts.password is not None:
        raise Unusable("An address holds no user name or password. Check the signature instead.")
    if parts.fragment:
        raise Unusable("An address has no # in it: what follows would never be sent.")
    if ":" in host and "%" not in host:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise Unusable("This is no IPv6 address.") from None
    elif not _HOST.fullmatch(host):
        raise Unusable("A host name has letters, digits, dots and dashes.")
    if port == 0:
        raise Unusable("A port is a number from 1 to 65535.")
    tls = parts.scheme.lower() == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(tls, host.rstrip("."), port or (443 if tls else 80), path)


def check_literal(where: Endpoint, listed: Iterable[str]) -> None:
    """Refuse (Unusable) an address that is numeric and may not be asked; names are judged once they are resolved."""
    try:
        address = parse(where.host)
    except ValueError:
        return
    if reason := _forbidden(address, is_listed=where.host in set(listed)):
        raise Unusable(f"{where.host} {reason}.")


def _forbidden(address: Numeric, *, is_listed: bool) -> str:
    if is_never(address):
        return "may never be asked: it is link-local, multicast, unspecified or a metadata service"
    if is_listed or is_public(address):
        return ""
    return "is not a public address; ANDON_WEBHOOK_HOSTS lists the hosts that may be private"


def is_public(address: Numeric) -> bool:
    """Say whether an address is anybody's on the internet; not one that a gateway would translate."""
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address.sixtofour is not None):
        return False
    return address.is_global and not address.is_reserved


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return `sha256=<hex>` of `<timestamp>.<body>`."""
    return "sha256=" + hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def post(
    where: Endpoint, body: bytes, headers: Mapping[str, str], *, listed: Iterable[str], within_s: float = WITHIN_S
) -> int:
    """POST a JSON body and return the status that was answered, 2xx; all of it within `within_s` seconds.

    The name is resolved once and all its addresses are judged; of those the first that accepts the connection is
    asked. Raises Failed for everything else, a redirect too.
    """
    ends = time.monotonic() + within_s
    found = _resolve(where.host, where.port, _left(ends))
    for _, text in found:
        try:
            reason = _forbidden(parse(text), is_listed=where.host in set(listed))
        except ValueError:
            reason = "may never be asked: it belongs to one interface"
        if reason:
            raise Failed(f"{where.host}: {text} {reason}")
    fields = {
        "Host": where.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "User-Agent": "Andon",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    request = f"POST {where.path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body
    status = _exchange(_connect(found[:MAX_ADDRESSES], where.port, ends), where, request, ends)
    if not 200 <= status < 300:
        followed = "; redirects are not followed" if 300 <= status < 400 else ""
        raise Failed(f"answered {status}{followed}", status)
    return status


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise Failed("no answer in time")
    return left


def _resolve(host: str, port: int, within_s: float) -> list[_Found]:
    """Look a name up in a thread of its own: a look-up cannot be interrupted, but it need not be waited for."""
    answer: queue.SimpleQueue[list[_Found] | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in rows)))
        except (OSError, UnicodeError):
            answer.put(None)

    threading.Thread(target=look, name="webhook-lookup", daemon=True).start()
    try:
        found = answer.get(timeout=within_s)
    except queue.Empty:
        raise Failed(f"{host} was not resolved in time") from None
    if not found:
        raise Failed(f"no address for {host}")
    return found


def _connect(found: list[_Found], port: int, ends: float) -> socket.socket:
    """Connect to the first address that accepts; the last one may take all the time that is left."""
    reasons = []
    for number, (family, address) in enumerate(found, 1):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            left = _left(ends)
            sock.settimeout(left if number == len(found) else left / 2)
            sock.connect((address, port))
        except (OSError, Failed) as error:
            sock.close()
            number_ = error.errno if isinstance(error, OSError) else None
            reasons.append(os.strerror(number_).lower() if number_ else "no answer in time")
        else:
            return sock
    raise Failed(f"cannot connect to port {port}: {'; '.join(dict.fromkeys(reasons))}")


def _exchange(sock: socket.socket, where: Endpoint, request: bytes, ends: float) -> int:
    with contextlib.ExitStack() as closing:
        closing.callback(sock.close)
        try:
            stream = sock
            if where.tls:
                sock.settimeout(_left(ends))
                stream = ssl.create_default_context().wrap_socket(sock, server_hostname=where.host)
                closing.callback(stream.close)
            _send(stream, request, ends)
            status, ended = _answer(stream, ends)
        except TimeoutError:
            raise Failed("no answer in time") from None
        except ssl.SSLError as error:
            why = (error.reason or error.__class__.__name__).replace("_", " ").lower()
            raise Failed(f"no TLS: {why}") from None
        except OSError as error:
            raise Failed(f"the connection broke: {os.strerror(error.errno or 0).lower()}") from None
        except Malformed as why:
            raise Failed(str(why)) from None
        if not ended:
            with contextlib.suppress(OSError, Failed):
                _linger(stream, min(ends, time.monotonic() + LINGER_S))
        return status


def _send(stream: socket.socket, request: bytes, ends: float) -> None:
    rest = memoryview(request)
    while rest:
        stream.settimeout(_left(ends))
        try:
            rest = rest[stream.send(rest) :]
        except (BrokenPipeError, ConnectionResetError):
            return  # it may have answered before it read us to the end


def _answer(stream: socket.socket, ends: float) -> tuple[int, bool]:
    """Return the status, and whether the connection ended with it."""
    head = Head(0)
    while True:
        stream.settimeout(_left(ends))
        piece = stream.recv(_PIECE)
        status = head.feed(piece) if piece else head.finish()
        if status is not None:
            return status, not piece


def _linger(stream: socket.socket, ends: float) -> None:
    size = 0
    while size < MAX_BODY:
        stream.settimeout(_left(ends))
        piece = stream.recv(_PIECE)
        if not piece:
            return
        size += len(piece)
