"""Where a probe may connect: loopback, and whatever else the settings list by name; metadata services never."""

import ipaddress
import logging
import queue
import socket
import threading
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from services.specs.addresses import is_never, parse

logger = logging.getLogger(__name__)

Address: TypeAlias = tuple[socket.AddressFamily, str]

LOOPBACK: tuple[Address, ...] = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
MAX_ADDRESSES = 8

_T = TypeVar("_T")


def literal(host: str) -> tuple[Address, ...] | None:
    """Return the addresses of a host that needs no look-up (`localhost` is both), None for any other name."""
    if host == "localhost" or host.endswith(".localhost"):
        return LOOPBACK
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return ((socket.AF_INET if address.version == 4 else socket.AF_INET6, host),)


def is_allowed(text: str, *, listed: bool) -> bool:
    """Tell whether a numeric address may be connected to; `listed`: the settings name the host it came from.

    An address that cannot be read, or one with a zone (`fe80::1%eth0`), is not allowed.
    """
    try:
        address = parse(text)
    except ValueError:
        return False
    return address.is_loopback or (listed and not is_never(address))


class Lookups:
    """Resolves names aside, each name once at a time, so that a name server that is silent delays nobody else."""

    def __init__(self, pool: "Pool") -> None:
        """Look up on `pool`."""
        self._pool = pool
        self._waiting: dict[str, list[Callable[[tuple[Address, ...]], None]]] = {}

    def ask(self, host: str, answer: Callable[[tuple[Address, ...]], None]) -> None:
        """Call `answer` with the addresses of a name, none when there are none. Both in the loop's thread."""
        waiting = self._waiting.setdefault(host, [])
        waiting.append(answer)
        if len(waiting) == 1:
            self._pool.submit(lambda: _resolve(host), lambda found: self._found(host, found))

    def _found(self, host: str, found: tuple[Address, ...] | None) -> None:
        for answer in self._waiting.pop(host, ()):
            answer(found or ())


def _resolve(host: str) -> tuple[Address, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


class Pool:
    """A few daemon threads for what would block the loop; an answer comes back through `post`.

    Started when first needed. Not joined: a look-up cannot be interrupted, and must not delay the end.
    """

    def __init__(self, name: str, size: int, post: Callable[[Callable[[], None]], None]) -> None:
        """Run on up to `size` threads; `post` brings a callback to the loop's thread."""
        self._name = name
        self._size = size
        self._post = post
        self._threads = 0
        self._busy = 0
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, work: Callable[[], _T], then: Callable[[_T | None], None]) -> None:
        """Run `work` aside and then `then` with its value in the loop's thread; None when it raised."""
        self._busy += 1

        def finish(value: _T | None) -> None:
            self._busy -= 1
            then(value)

        def order() -> None:
            value: _T | None = None
            try:
                value = work()
            except Exception:
                logger.exception("a probe's work aside failed")
            self._post(lambda: finish(value))

        self._orders.put(order)
        if self._threads < min(self._busy, self._size):
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()

    def close(self) -> None:
        """Let the threads end as soon as they are idle."""
        for _ in range(self._threads):
            self._orders.put(None)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
