"""Verbs over what runs.

A host's worker: enlist beat silence leave forget. A managed process: declare reject launch start stop kill restart
extend erase force (intents, from any process) and spawned fail heal sicken ended signalled remain settle respawn adopt
lose warn (what its node's worker saw or did). No verb touches a process; the supervisor does, between two of them.
"""

from services.lifecycle.declaring import Declared, Quotas, declare, erase, launch, lock_host, reject, start
from services.lifecycle.hosts import beat, enlist, forget, leave, silence
from services.lifecycle.living import adopt, extend, fail, heal, roll_back, sicken, spawned, warn
from services.lifecycle.moves import on_end, on_loop, on_start
from services.lifecycle.stopping import ended, force, kill, lose, remain, respawn, restart, settle, signalled, stop

__all__ = [
    "Declared",
    "Quotas",
    "adopt",
    "beat",
    "declare",
    "ended",
    "enlist",
    "erase",
    "extend",
    "fail",
    "force",
    "forget",
    "heal",
    "kill",
    "launch",
    "leave",
    "lock_host",
    "lose",
    "on_end",
    "on_loop",
    "on_start",
    "reject",
    "remain",
    "respawn",
    "restart",
    "roll_back",
    "settle",
    "sicken",
    "signalled",
    "silence",
    "spawned",
    "start",
    "stop",
    "warn",
]
