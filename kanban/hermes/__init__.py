"""Bringing in a Hermes board: `reading` its file, `translating` its rows, `bringing` them in.

`weaving` adds the links in bulk, `holding` keeps what waits from being started before they are there.
"""

from kanban.hermes.bringing import Brought, bring
from kanban.hermes.reading import Board, Unreadable, opened

__all__ = ["Board", "Brought", "Unreadable", "bring", "opened"]
