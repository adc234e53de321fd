"""What the files say, who may ask, what was asked of a loop, and the log that everything is told through."""

from projects.models.access import ApiToken, Preference, SignInLink, check_zone
from projects.models.files import Iteration, Project, Story, UsageEntry
from projects.models.log import Event, EventFloor
from projects.models.loops import LoopStop, Rollback

__all__ = [
    "ApiToken",
    "Event",
    "EventFloor",
    "Iteration",
    "LoopStop",
    "Preference",
    "Project",
    "Rollback",
    "SignInLink",
    "Story",
    "UsageEntry",
    "check_zone",
]
