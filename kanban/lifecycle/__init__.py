"""Verbs over tasks, their runs, and who does them.

People and programs: create edit assign prioritise limit comment link unlink unblock approve send_back archive reopen
move_to release force patch. Dispatcher and runs: claim heartbeat complete block request_review. What the hosts saw:
spawned exited expire time_out give_up_launch declare_services services_known. Profiles: pause resume note_found, and
pause_dispatch resume_dispatch. Hosts: ask_clean_up finish_clean_up. Notices have modules of their own: `subscribing` is
people's, `delivering` Andon's.
"""

from kanban.lifecycle.cleaning import ask_clean_up, asker, finish_clean_up
from kanban.lifecycle.creating import assign, comment, create, edit, link, prioritise, unlink
from kanban.lifecycle.ending import (
    declare_services,
    exited,
    expire,
    fail,
    give_up_launch,
    on_left,
    rate_limit,
    release,
    services_known,
    still_waiting,
    time_out,
)
from kanban.lifecycle.moves import free, is_over_budget, locked, on_free, stop_process
from kanban.lifecycle.profiles import note_found, pause, pause_dispatch, resume, resume_dispatch, the_board
from kanban.lifecycle.promotion import settle
from kanban.lifecycle.steering import approve, archive, force, limit, move_to, patch, reopen, send_back, unblock
from kanban.lifecycle.working import block, claim, complete, heartbeat, request_review, spawned

__all__ = [
    "approve",
    "archive",
    "ask_clean_up",
    "asker",
    "assign",
    "block",
    "claim",
    "comment",
    "complete",
    "create",
    "declare_services",
    "edit",
    "exited",
    "expire",
    "fail",
    "finish_clean_up",
    "force",
    "free",
    "give_up_launch",
    "heartbeat",
    "is_over_budget",
    "limit",
    "link",
    "locked",
    "move_to",
    "note_found",
    "on_free",
    "on_left",
    "patch",
    "pause",
    "pause_dispatch",
    "prioritise",
    "rate_limit",
    "release",
    "reopen",
    "request_review",
    "resume",
    "resume_dispatch",
    "send_back",
    "services_known",
    "settle",
    "spawned",
    "still_waiting",
    "stop_process",
    "the_board",
    "time_out",
    "unblock",
    "unlink",
]
