"""What the prober and the probes in flight ask of each other."""

from typing import Protocol

from services.probes.addresses import Lookups, Pool
from services.probes.loop import Loop


class Flight(Protocol):
    """One probe in flight, as that which carries it out sees it; everything in the loop's thread."""

    loop: Loop
    lookups: Lookups
    searches: Pool

    def leave(self) -> None:
        """Let the next probe of this service in; the deadline is off from now on."""

    def settle(self, *, ok: bool, reason: str = "") -> None:
        """Tell the result; a second call does nothing."""

    def land(self) -> None:
        """Nothing of it is left: no descriptor, no process."""


class Carrier(Protocol):
    """What carries out a probe: an exchange over sockets, or a program."""

    def begin(self) -> None:
        """Start; nothing is raised for what the service may have caused."""

    def expire(self, reason: str) -> None:
        """The deadline has passed: end and settle, with this reason where there is no better one."""

    def close(self) -> None:
        """End at once and settle nothing; `land` follows, at the latest when a killed program is reaped."""
