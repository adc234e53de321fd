"""Healthcheck probes: one thread asks a thousand services over http, tcp or by a command (spec/services.md 1 and 4).

A pure leaf: Linux only, no Django, no settings.
"""

from services.probes.checks import Check, Command, Http, Result, Tcp
from services.probes.prober import Prober, run
from services.probes.streaks import Streak, after, is_down, is_up, next_delay

__all__ = [
    "Check",
    "Command",
    "Http",
    "Prober",
    "Result",
    "Streak",
    "Tcp",
    "after",
    "is_down",
    "is_up",
    "next_delay",
    "run",
]
