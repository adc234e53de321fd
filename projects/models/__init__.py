"""What the files say, who may ask, what was asked of a loop, and the log that everything is told through."""

from projects.models.access import ApiToken, Preference, SignInLink, check_zone
from projects.models.files import Iteration, Project, Story, UsageEntry
from projects.models.journals import JournalFile, JournalRecord, LoopRegistry, LoopRun, Tombstone, Turn
from projects.models.log import Event, EventFloor
from projects.models.loops import LoopStop, Rollback

__all__ = [
    "ApiToken",
    "Event",
    "EventFloor",
    "Iteration",
    "JournalFile",
    "JournalRecord",
    "LoopRegistry",
    "LoopRun",
    "LoopStop",
    "Preference",
    "Project",
    "Rollback",
    "SignInLink",
    "Story",
    "Tombstone",
    "Turn",
    "UsageEntry",
    "check_zone",
]
