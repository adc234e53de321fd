"""Attempts at tasks, the agents who make them, and the dispatcher's switch."""

from typing import Any

from django.db import models
from django.db.models import Q
from django.urls import reverse

from kanban.models.tasks import Task
from kanban.states import Outcome, Reports
from services.models import ManagedProcess
from services.states import LIVE


class Run(models.Model):
    """One attempt at a task; at most one of a task has not ended.

    `process` is null for a pull worker elsewhere, whose lease alone decides. `verdict` is what the worker reported
    before its services were looked at ("" = nothing yet), `services` the managed processes that it declared:
    [{process, generation, name}].
    """

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="runs")
    number = models.PositiveIntegerField()
    profile = models.CharField(max_length=80, blank=True, default="")
    host = models.CharField(max_length=64, blank=True, default="")
    owner = models.CharField(max_length=200)
    process = models.ForeignKey(ManagedProcess, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    has_process = models.BooleanField(default=False)
    pid = models.IntegerField(null=True, blank=True)
    workspace = models.CharField(max_length=4096, blank=True, default="")
    log_path = models.CharField(max_length=300, blank=True, default="")

    started_at = models.DateTimeField()
    launch_by = models.DateTimeField(null=True, blank=True)
    spawned_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    told_at = models.DateTimeField(null=True, blank=True)
    timeout_at = models.DateTimeField(null=True, blank=True)
    reported_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    outcome = models.CharField(max_length=20, choices=Outcome.choices, blank=True, default="")
    exit_code = models.IntegerField(null=True, blank=True)
    verdict = models.CharField(max_length=20, choices=Outcome.choices, blank=True, default="")
    result = models.TextField(blank=True, default="")
    summary = models.TextField(blank=True, default="")
    failure_class = models.CharField(max_length=40, blank=True, default="")
    signature = models.CharField(max_length=16, blank=True, default="", help_text="Equal for errors that are alike")
    error = models.CharField(max_length=3000, blank=True, default="")
    services = models.JSONField(default=list, blank=True)
    services_healthy = models.PositiveIntegerField(null=True, blank=True)
    services_total = models.PositiveIntegerField(null=True, blank=True)
    cost_usd = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    tokens = models.BigIntegerField(null=True, blank=True)

    class Meta:
        ordering = ["task_id", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["task", "number"], name="run_number_unique"),
            models.UniqueConstraint(fields=["task"], condition=Q(ended_at=None), name="run_one_live_a_task"),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, outcome="") | (Q(ended_at__isnull=False) & ~Q(outcome="")),
                name="run_ended_has_outcome",
            ),
        ]
        indexes = [
            models.Index(fields=["profile", "ended_at"], name="run_profile"),
            models.Index(fields=["ended_at"], name="run_ended"),
            models.Index(fields=["process"], name="run_process", condition=Q(process__isnull=False)),
            models.Index(fields=["timeout_at"], name="run_timeout", condition=Q(ended_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.task_id}/{self.number}"

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.pk])

    @property
    def agent(self) -> str:
        """The id under which it leaves a sidecar, and its folder's name."""
        return f"{self.task_id}-{self.number}"

    @property
    def process_name(self) -> str:
        """Return `t-1a2b3c4d-3`, as processes are named."""
        return f"{self.task_id.replace('_', '-')}-{self.number}"


# A run whose process is not verified gone; its task is not to be claimed.
LINGERING = Q(process__isnull=False, process__status__in=sorted(LIVE))


class Profile(models.Model):
    """A kind of worker: how it is started, how many at once, and whether it is paused.

    `argv` is a template: `{task_id} {title} {workspace} {context_file}` stand for whole arguments (also `{python}` and
    `{demo}`, of Andon's own worker). `enabled` null = as soon as its executable was found; `found_on` lists the nodes
    where it was. `env` holds values that only an administrator sees.
    """

    name = models.CharField(max_length=80, unique=True)
    argv = models.JSONField(default=list)
    env = models.JSONField(default=dict, blank=True)
    reports = models.CharField(max_length=8, choices=Reports.choices, default=Reports.CLI)
    concurrency = models.PositiveIntegerField(default=2, help_text="How many of its runs live at once")
    failure_limit = models.PositiveIntegerField(null=True, blank=True)
    stop_grace_s = models.PositiveIntegerField(default=10)
    enabled = models.BooleanField(null=True, blank=True)
    found_on = models.JSONField(default=list, blank=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_reason = models.CharField(max_length=600, blank=True, default="")
    paused_by = models.CharField(max_length=200, blank=True, default="")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def subject(self) -> str:
        return f"profile:{self.name}"

    def can_spawn(self, node: str) -> bool:
        """Say whether its workers can be started on a node now."""
        is_there = node in self.found_on if self.enabled is None else self.enabled
        return bool(is_there and self.argv and self.paused_at is None)


class Board(models.Model):
    """The dispatcher's switch and its last pass; one row, id 1."""

    paused_at = models.DateTimeField(null=True, blank=True)
    paused_by = models.CharField(max_length=200, blank=True, default="")
    last_pass_at = models.DateTimeField(null=True, blank=True)
    last_pass: Any = models.JSONField(default=dict, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="board_is_one_row")]

    def __str__(self) -> str:
        return "paused" if self.paused_at else "dispatching"
