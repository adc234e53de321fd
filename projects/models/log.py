"""The event log and how far retention has deleted it."""

from django.db import models
from django.db.models import Q
from django.urls import NoReverseMatch, reverse

from projects.sentences import sentence


class Event(models.Model):
    """One change of state. Append-only; written by events.writing() alone, pruned by retention alone."""

    at = models.DateTimeField(db_index=True)
    kind = models.CharField(max_length=64)
    subject = models.CharField(max_length=200)
    project = models.CharField(max_length=80, blank=True, default="")
    actor = models.CharField(max_length=200, blank=True, default="")
    run = models.CharField(max_length=64, blank=True, default="")
    payload = models.JSONField(default=dict, blank=True)
    # What its subject is called, set by who shows it (projects.queries.entitled); no column.
    title = ""

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(fields=["kind", "id"], name="event_kind"),
            models.Index(fields=["subject", "id"], name="event_subject"),
            models.Index(fields=["project", "id"], name="event_project"),
            models.Index(fields=["actor", "id"], name="event_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.kind} {self.subject}"

    def get_absolute_url(self) -> str:
        return reverse("event", args=[self.id])

    @property
    def url(self) -> str:
        """The page of what the event is about, "" where there is none."""
        family, _, rest = self.subject.partition(":")
        parts: list[str | int] = [*rest.split("/", 1)]
        try:
            match family:
                case "iteration":
                    parts[1:] = [int(part) for part in parts[1:]]
                case "project":
                    parts = [rest]
                case "notice":
                    parts = [int(rest)]
                case "turn" | "session":
                    family, parts = ("session", parts[:1]) if rest else ("audit", [])
                case "agent" | "token" | "worker":
                    family, parts = {"agent": "services", "token": "settings", "worker": "system"}[family], []
                case "service" | "story" | "task":
                    pass
                case "profile" | "board":
                    family, parts = {"profile": "profiles", "board": "kanban"}[family], []
                case _:
                    return ""
            return reverse(family, args=parts)
        except (NoReverseMatch, ValueError):
            return ""

    @property
    def summary(self) -> str:
        """What happened, in one sentence for a person."""
        return sentence(self.kind, self.subject, self.payload, self.title)


class EventFloor(models.Model):
    """How far retention has deleted; one row, id 1."""

    pruned_through = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="event_floor_is_one_row")]

    def __str__(self) -> str:
        return f"pruned through {self.pruned_through}"
