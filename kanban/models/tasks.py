"""Cards, what they wait for, and what is said about them."""

from datetime import datetime

from django.db import models
from django.db.models import F, Q
from django.urls import reverse

from kanban.states import BlockKind, Phase, Status, WorkspaceKind

LONGEST_TITLE = 500
LONGEST_TEXT = 262_144
LONGEST_ERROR = 500
# A worker's process may bear any number as long as this.
NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"


class Task(models.Model):
    """One card. While RUNNING it has a lease and a current run, and only then.

    `current_run` is a run's number. `held`: a person wants it to wait in todo. `parents_waived`: a person sent it to
    ready although parents are open. `not_before`: no claim until then (a quota). `unblock_at`: when a transient block
    lifts itself.
    """

    id = models.CharField(primary_key=True, max_length=10)
    title = models.CharField(max_length=LONGEST_TITLE)
    body = models.TextField(blank=True, default="")
    assignee = models.CharField(max_length=80, blank=True, default="")
    status = models.CharField(max_length=8, choices=Status.choices)
    since = models.DateTimeField(help_text="When the status last changed")
    priority = models.IntegerField(default=0, help_text="Higher first")
    tenant = models.CharField(max_length=80, blank=True, default="")
    project = models.CharField(max_length=80, blank=True, default="")
    created_by = models.CharField(max_length=200, blank=True, default="")
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    active_at = models.DateTimeField(help_text="When anything was last heard of it")
    workspace_kind = models.CharField(
        max_length=8, choices=WorkspaceKind.choices, default=WorkspaceKind.SCRATCH, blank=True
    )
    workspace_path = models.CharField(max_length=4096, blank=True, default="")
    result = models.TextField(blank=True, default="")
    idempotency_key = models.CharField(max_length=200, blank=True, default="")

    failures = models.PositiveIntegerField(default=0)
    violations = models.PositiveIntegerField(default=0)
    failure_limit = models.PositiveIntegerField(null=True, blank=True)
    last_error = models.CharField(max_length=LONGEST_ERROR, blank=True, default="")
    block_kind = models.CharField(max_length=12, choices=BlockKind.choices, blank=True, default="")
    block_reason = models.TextField(blank=True, default="")
    blocked_by = models.CharField(max_length=200, blank=True, default="")
    unblock_at = models.DateTimeField(null=True, blank=True)
    transient_blocks = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(null=True, blank=True)
    held = models.BooleanField(default=False)
    parents_waived = models.BooleanField(default=False)

    max_runtime_s = models.PositiveIntegerField(null=True, blank=True)
    max_cost_usd = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    services_required = models.BooleanField(default=False)
    phase = models.CharField(max_length=8, choices=Phase.choices, blank=True, default="")
    current_run = models.PositiveIntegerField(null=True, blank=True)
    lease_owner = models.CharField(max_length=200, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-priority", "created_at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["idempotency_key"],
                condition=~Q(idempotency_key="") & ~Q(status=Status.ARCHIVED),
                name="task_key_unique",
            ),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="task_status_known"),
            models.CheckConstraint(condition=~Q(title=""), name="task_has_title"),
            models.CheckConstraint(
                condition=(
                    Q(status=Status.RUNNING, lease_until__isnull=False, current_run__isnull=False) & ~Q(lease_owner="")
                )
                | (
                    ~Q(status=Status.RUNNING)
                    & Q(lease_until__isnull=True, current_run__isnull=True, lease_owner="", phase="")
                ),
                name="task_running_has_lease_and_run",
            ),
            models.CheckConstraint(
                condition=(Q(status=Status.BLOCKED) & ~Q(block_kind=""))
                | (~Q(status=Status.BLOCKED) & Q(block_kind="")),
                name="task_blocked_has_kind",
            ),
        ]
        indexes = [
            models.Index(fields=["status", "-priority", "created_at", "id"], name="task_board"),
            models.Index(fields=["lease_until"], name="task_lease", condition=Q(lease_until__isnull=False)),
            models.Index(fields=["unblock_at"], name="task_unblock", condition=Q(unblock_at__isnull=False)),
            models.Index(fields=["project", "status"], name="task_project", condition=~Q(project="")),
            models.Index(fields=["assignee", "status"], name="task_assignee"),
        ]

    def __str__(self) -> str:
        return self.id

    def get_absolute_url(self) -> str:
        return reverse("task", args=[self.pk])

    @property
    def subject(self) -> str:
        return f"task:{self.id}"

    @property
    def run_name(self) -> str:
        """What the current run is called in tokens and events, "" without one."""
        return f"{self.id}/{self.current_run}" if self.current_run is not None else ""


class Link(models.Model):
    """A child waits until its parent is done or archived."""

    parent = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="child_links")
    child = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="parent_links")

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["parent", "child"], name="link_unique"),
            models.CheckConstraint(condition=~Q(parent=F("child")), name="link_not_to_itself"),
        ]

    def __str__(self) -> str:
        return f"{self.parent_id} -> {self.child_id}"


class Comment(models.Model):
    """What somebody said about a task."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="comments")
    author = models.CharField(max_length=200)
    body = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.author} on {self.task_id}"


def age_s(moment: datetime | None, now: datetime) -> int | None:
    """Return whole seconds since a moment, None without one."""
    return None if moment is None else max(0, int((now - moment).total_seconds()))
