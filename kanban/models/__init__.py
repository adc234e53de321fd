"""The work to be done: tasks and their links, attempts, comments; the agents who do it; who is told of what."""

from kanban.models.cleaning import CleanUp
from kanban.models.notices import Delivery, Subscription
from kanban.models.runs import LINGERING, Board, Profile, Run
from kanban.models.tasks import LONGEST_ERROR, LONGEST_TEXT, LONGEST_TITLE, NAME, Comment, Link, Task, age_s

__all__ = [
    "LINGERING",
    "LONGEST_ERROR",
    "LONGEST_TEXT",
    "LONGEST_TITLE",
    "NAME",
    "Board",
    "CleanUp",
    "Comment",
    "Delivery",
    "Link",
    "Profile",
    "Run",
    "Subscription",
    "Task",
    "age_s",
]
