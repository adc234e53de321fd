"""What people asked of a loop: intents that the worker of its node carries out."""

from datetime import datetime

from django.db import models
from django.db.models import Q
from django.urls import reverse

from projects.models.files import Project
from projects.states import ROLLBACK_OPEN, STOP_OPEN, RollbackStatus, StopStatus


class LoopStop(models.Model):
    """A loop is to be stopped, whoever started it. `code` and `detail` say why it was refused.

    The process (`pid`, `start_ticks`, `boot_id`) is known once the worker has looked. `members` are those who are to
    go with it, [pid, start ticks] each, `left` the pids that are still there after KILL.
    """

    project = models.CharField(max_length=80)
    node = models.CharField(max_length=64)
    status = models.CharField(max_length=8, choices=StopStatus.choices, default=StopStatus.ASKED)
    asked_by = models.CharField(max_length=200)
    asked_via = models.CharField(max_length=8)
    asked_from = models.CharField(max_length=64, blank=True, default="")
    asked_at = models.DateTimeField()
    grace_s = models.IntegerField()
    process = models.BigIntegerField(null=True, blank=True, help_text="The managed process, of a loop Andon started")
    pid = models.IntegerField(null=True, blank=True)
    start_ticks = models.BigIntegerField(null=True, blank=True)
    boot_id = models.CharField(max_length=36, blank=True, default="")
    members = models.JSONField(default=list, blank=True)
    left = models.JSONField(default=list, blank=True)
    term_at = models.DateTimeField(null=True, blank=True)
    kill_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    code = models.CharField(max_length=64, blank=True, default="")
    detail = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project"], condition=Q(status__in=sorted(STOP_OPEN)), name="one_open_stop_a_project"
            ),
            models.CheckConstraint(condition=Q(status__in=StopStatus.values), name="stop_status_known"),
            models.CheckConstraint(
                condition=~Q(status="ending") | Q(kill_at__isnull=False), name="stop_ending_has_deadline"
            ),
        ]
        indexes = [
            models.Index(fields=["node"], name="stop_open", condition=Q(status__in=sorted(STOP_OPEN))),
            models.Index(fields=["project", "pid"], name="stop_of_process"),
        ]

    def __str__(self) -> str:
        return f"stop of {self.project}"

    @classmethod
    def of_process(cls, project: Project) -> "LoopStop | None":
        """Return the stop that ended, or is ending, the process that a project's row names as its loop."""
        rows = cls.objects.filter(project=project.slug, pid=project.pid, start_ticks=project.start_ticks)
        return rows.exclude(status__in=[StopStatus.ASKED, StopStatus.REFUSED]).first() if project.pid else None

    @property
    def is_open(self) -> bool:
        return self.status in STOP_OPEN

    def was_killed(self, now: datetime) -> bool:
        """Say whether TERM was not enough; while it is open the deadline tells."""
        is_late = self.status == StopStatus.ENDING and self.kill_at is not None and self.kill_at <= now
        return is_late or self.status == StopStatus.KILLED


class Rollback(models.Model):
    """The last commit (or `commit`) of a project is to be undone, or was. Kept for good: it names the backup ref.

    `head`, `new`, `paths` and `saved` are the intent: what a worker needs to go on or to undo after a crash. `code`
    and `detail` say why it was refused or undone, `extra` what belongs to that answer.
    """

    project = models.CharField(max_length=80)
    node = models.CharField(max_length=64)
    path = models.CharField(max_length=4096)
    status = models.CharField(max_length=8, choices=RollbackStatus.choices, default=RollbackStatus.ASKED)
    asked_by = models.CharField(max_length=200)
    asked_via = models.CharField(max_length=8)
    asked_from = models.CharField(max_length=64, blank=True, default="")
    asked_at = models.DateTimeField()
    idempotency_key = models.CharField(max_length=200, blank=True, default="")
    wanted = models.JSONField(default=dict, help_text="expected_head, commit, story, mainline as asked")
    head = models.CharField(max_length=64, blank=True, default="")
    new = models.CharField(max_length=64, blank=True, default="")
    intent = models.JSONField(default=dict, blank=True, help_text="What a worker needs to go on, or to undo")
    backup_ref = models.CharField(max_length=200, blank=True, default="")
    reverted_commit = models.CharField(max_length=64, blank=True, default="")
    subject_line = models.CharField(max_length=500, blank=True, default="")
    story_key = models.CharField(max_length=200, blank=True, default="")
    method = models.CharField(max_length=16, blank=True, default="")
    pushed = models.BooleanField(default=False)
    files = models.IntegerField(default=0)
    ended_at = models.DateTimeField(null=True, blank=True)
    code = models.CharField(max_length=64, blank=True, default="")
    detail = models.CharField(max_length=2000, blank=True, default="")
    extra = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project"], condition=Q(status__in=sorted(ROLLBACK_OPEN)), name="one_open_rollback_a_project"
            ),
            models.UniqueConstraint(
                fields=["project", "idempotency_key"],
                condition=~Q(idempotency_key=""),
                name="rollback_idempotency_key_unique",
            ),
            models.CheckConstraint(condition=Q(status__in=RollbackStatus.values), name="rollback_status_known"),
            models.CheckConstraint(
                condition=~Q(status="applying") | (~Q(head="") & ~Q(new="") & ~Q(backup_ref="")),
                name="rollback_applying_has_intent",
            ),
        ]
        indexes = [
            models.Index(fields=["node"], name="rollback_open", condition=Q(status__in=sorted(ROLLBACK_OPEN))),
        ]

    def __str__(self) -> str:
        return f"rollback {self.pk} of {self.project}"

    def get_absolute_url(self) -> str:
        return reverse("rollback-done", args=[self.project, self.pk])

    @property
    def is_open(self) -> bool:
        return self.status in ROLLBACK_OPEN

    @property
    def story_reverted(self) -> str | None:
        """The story that is open again by it, None when it could not be opened."""
        return self.story_key if self.status == RollbackStatus.DONE and not self.detail else None

    def is_due(self, now: datetime) -> bool:
        """Say whether it may be tried (again)."""
        again = self.extra.get("again_at")
        return again is None or datetime.fromisoformat(again) <= now
