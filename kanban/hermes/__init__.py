"""Bringing in a Hermes board: `reading` its file, `translating` its rows, `bringing` them in."""

from kanban.hermes.bringing import Brought, bring
from kanban.hermes.reading import Board, Unreadable, opened

__all__ = ["Board", "Brought", "Unreadable", "bring", "opened"]
