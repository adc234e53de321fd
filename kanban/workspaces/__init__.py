"""Make and remove the directory that a task's worker runs in. Knows no Django.

Below a managed root, `<home>/workspaces`, every component is opened without following links. Agents may have left
anything in a workspace: links, FIFOs, directories that may not be entered, ten thousand of them in each other.
Rules: spec/kanban.md, sections 3 and 5.
"""

from kanban.workspaces.inside import FOLDER, MARKER, CannotMake
from kanban.workspaces.making import make
from kanban.workspaces.removing import artefacts, aside, clear, is_ours, keep, set_aside

__all__ = [
    "FOLDER",
    "MARKER",
    "CannotMake",
    "artefacts",
    "aside",
    "clear",
    "is_ours",
    "keep",
    "make",
    "set_aside",
]
