"""Verbs of the projects: what people ask of a loop and of the last commit, and what is known of a loop."""

from projects.lifecycle.rollbacks import ask as ask_rollback
from projects.lifecycle.rollbacks import (
    finish,
    force,
    intend,
    note_wait,
    of_key,
    refuse,
    refuse_while_open,
    release_key,
    undo,
)
from projects.lifecycle.running import configure, note_loop, note_loop_end, tell_budget
from projects.lifecycle.stops import ask as ask_stop
from projects.lifecycle.stops import signal as signal_stop

__all__ = [
    "ask_rollback",
    "ask_stop",
    "configure",
    "finish",
    "force",
    "intend",
    "note_loop",
    "note_loop_end",
    "note_wait",
    "of_key",
    "refuse",
    "refuse_while_open",
    "release_key",
    "signal_stop",
    "tell_budget",
    "undo",
]
