"""Words that drive: roles, and what a project's files add up to."""

from django.db import models


class Role(models.TextChoices):
    """What somebody may do: read, run verbs, or change settings; each includes the one before."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Role).index(self)

    def includes(self, other: "Role") -> bool:
        return self.rank >= other.rank


class ProjectStatus(models.TextChoices):
    """Derived in queries.py, first match wins; never stored."""

    MISSING = "missing"
    ERROR = "error"
    RUNNING = "running"
    FAILED = "failed"
    COMPLETE = "complete"
    BLOCKED = "blocked"
    IDLE = "idle"


class StoryState(models.TextChoices):
    """The one state of a story, in order of precedence (spec: projects.md 1)."""

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    IN_PROGRESS = "in_progress"
    PENDING = "pending"


class StopStatus(models.TextChoices):
    """Where the stop of a loop is: asked for, told to its worker's processes, over."""

    ASKED = "asked"
    ENDING = "ending"
    STOPPED = "stopped"
    KILLED = "killed"
    REFUSED = "refused"


STOP_MOVES: dict[str, tuple[frozenset[StopStatus], StopStatus]] = {
    "signal": (frozenset({StopStatus.ASKED}), StopStatus.ENDING),
    "settle": (frozenset({StopStatus.ASKED, StopStatus.ENDING}), StopStatus.STOPPED),
    "settle_killed": (frozenset({StopStatus.ENDING}), StopStatus.KILLED),
    "refuse": (frozenset({StopStatus.ASKED, StopStatus.ENDING}), StopStatus.REFUSED),
}
STOP_OPEN = frozenset({StopStatus.ASKED, StopStatus.ENDING})


class RollbackStatus(models.TextChoices):
    """Where a rollback is: asked for, its intent committed and the tree being changed, over."""

    ASKED = "asked"
    APPLYING = "applying"
    DONE = "done"
    REFUSED = "refused"
    UNDONE = "undone"


ROLLBACK_MOVES: dict[str, tuple[frozenset[RollbackStatus], RollbackStatus]] = {
    "intend": (frozenset({RollbackStatus.ASKED}), RollbackStatus.APPLYING),
    "finish": (frozenset({RollbackStatus.APPLYING}), RollbackStatus.DONE),
    "refuse": (frozenset({RollbackStatus.ASKED}), RollbackStatus.REFUSED),
    "undo": (frozenset({RollbackStatus.APPLYING}), RollbackStatus.UNDONE),
    "force": (frozenset({RollbackStatus.ASKED, RollbackStatus.APPLYING}), RollbackStatus.UNDONE),
}
ROLLBACK_OPEN = frozenset({RollbackStatus.ASKED, RollbackStatus.APPLYING})


class JournalFamily(models.TextChoices):
    """What a journal file tells of: turns of a session, or the loop of a project."""

    TURNS = "turns"
    HISTORY = "history"


class JournalState(models.TextChoices):
    """How a journal file was found at the last look; `superseded`: another file has its name now."""

    READ = "read"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    SUPERSEDED = "superseded"


class RecordStatus(models.TextChoices):
    """What a line that was read is."""

    EVENT = "event"
    MALFORMED = "malformed"
    SUPERSEDED = "superseded"


RECORD_MOVES: dict[str, tuple[frozenset[RecordStatus], RecordStatus]] = {
    "supersede": (frozenset({RecordStatus.EVENT, RecordStatus.MALFORMED}), RecordStatus.SUPERSEDED),
}


class Via(models.TextChoices):
    """The door through which a verb came."""

    API = "api"
    PAGE = "page"
    ADMIN = "admin"
    SWEEP = "sweep"
    RUN = "run"
