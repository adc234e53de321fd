"""Processes as the kernel sees them: who one is, whether it lives, how to signal it and not a stranger.

A pure leaf: Linux only, no Django, no settings.
"""

from services.processes.identity import (
    Gone,
    Identity,
    Pin,
    Refused,
    Unknown,
    Verdict,
    boot_id,
    descendants,
    identify,
    is_inside,
    pin,
    read_start_ticks,
    spawn,
    started_at,
    verdict,
    working_directory,
)
from services.processes.kernel import MARKER, Census, Holder, Kernel, Load, Mark, Member
from services.processes.linux import Linux

__all__ = [
    "MARKER",
    "Census",
    "Gone",
    "Holder",
    "Identity",
    "Kernel",
    "Linux",
    "Load",
    "Mark",
    "Member",
    "Pin",
    "Refused",
    "Unknown",
    "Verdict",
    "boot_id",
    "descendants",
    "identify",
    "is_inside",
    "pin",
    "read_start_ticks",
    "spawn",
    "started_at",
    "verdict",
    "working_directory",
]
