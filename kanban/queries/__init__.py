"""Reads over tasks, as REST and pages show them: lean rows, times as whole seconds since the epoch."""

from kanban.queries.board import board
from kanban.queries.detail import EVENTS_SHOWN, detail, get_run, get_task
from kanban.queries.events import KINDS, event_document, latest_event_id, titles
from kanban.queries.fields import document, epoch, read_document
from kanban.queries.stats import stats

__all__ = [
    "EVENTS_SHOWN",
    "KINDS",
    "board",
    "detail",
    "document",
    "epoch",
    "event_document",
    "get_run",
    "get_task",
    "latest_event_id",
    "read_document",
    "stats",
    "titles",
]
