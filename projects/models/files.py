"""What the files of a project say, as the importer last read them."""

from typing import Any

from django.db import models
from django.db.models import Q
from django.urls import reverse

from projects.states import StoryState


class Project(models.Model):
    """One directory under a workspace root, as the importer last read it."""

    slug = models.CharField(max_length=80, unique=True)
    node = models.CharField(max_length=64)
    path = models.CharField(max_length=4096)
    name = models.CharField(max_length=255)
    ralph = models.BooleanField(default=False)
    prd_path = models.CharField(max_length=64, blank=True, default="")
    title = models.CharField(max_length=500, blank=True, default="")
    branch = models.CharField(max_length=255, blank=True, default="")
    description = models.TextField(blank=True, default="")
    document = models.TextField(blank=True, default="", help_text="The last good prd.json, compact, as ASCII JSON")
    shown_stories = models.TextField(
        default="[]", editable=False, help_text="The stories as REST shows them, JSON, written with the rows"
    )
    warnings = models.JSONField(default=list, blank=True)
    error = models.CharField(max_length=500, blank=True, default="")
    stale_since = models.DateTimeField(null=True, blank=True)
    fingerprints = models.JSONField(default=dict, blank=True)
    running = models.BooleanField(default=False)
    ours = models.BooleanField(default=True)
    pid = models.IntegerField(null=True, blank=True)
    start_ticks = models.BigIntegerField(null=True, blank=True)
    boot_id = models.CharField(max_length=36, blank=True, default="")
    loop_started_at = models.DateTimeField(null=True, blank=True)
    last_iteration_at = models.DateTimeField(null=True, blank=True)
    written_at = models.DateTimeField(null=True, blank=True)
    stalled = models.BooleanField(default=False)
    durations = models.JSONField(default=list, blank=True)
    loop_agent = models.CharField(
        max_length=2000, blank=True, default="", help_text="The agent that Andon's own runner runs; empty = the default"
    )
    loop_command = models.CharField(
        max_length=2000,
        blank=True,
        default="",
        help_text="What start runs instead of the runner; no shell is used",
    )
    loop_process = models.JSONField(
        default=dict, blank=True, help_text="The loop that Andon started, as its supervisor knows it; {} = none"
    )
    total = models.IntegerField(default=0)
    passed = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    blocked = models.IntegerField(default=0)
    in_progress = models.IntegerField(default=0)
    found_at = models.DateTimeField()
    missing_since = models.DateTimeField(null=True, blank=True)
    revision = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.UniqueConstraint(fields=["node", "path"], name="project_path_unique_on_node"),
            models.CheckConstraint(
                condition=Q(passed__gte=0, failed__gte=0, blocked__gte=0, in_progress__gte=0), name="project_counts"
            ),
            models.CheckConstraint(condition=Q(running=False) | Q(pid__isnull=False), name="project_running_has_pid"),
        ]
        indexes = [models.Index(fields=["node"], name="project_running", condition=Q(running=True))]

    def __str__(self) -> str:
        return self.slug

    def get_absolute_url(self) -> str:
        return reverse("project", args=[self.slug])

    @property
    def subject(self) -> str:
        return f"project:{self.slug}"

    @property
    def loop_crash(self) -> dict[str, Any] | None:
        """How the loop that Andon started last crashed: {exit_code, process}; None when it did not."""
        known = self.loop_process
        crashed = not self.running and known.get("ended") and known.get("cause") in {"crash", "unobserved"}
        return {"exit_code": known.get("exit_code"), "process": known.get("process")} if crashed else None

    @property
    def loop_is_ours(self) -> bool:
        """Say whether Andon has started its loop and still watches it."""
        return bool(self.loop_process) and not self.loop_process.get("ended")


class Story(models.Model):
    """One user story of a project, as prd.json says."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="stories")
    key = models.CharField(max_length=200)
    position = models.IntegerField()
    title = models.CharField(max_length=500, blank=True)
    description = models.TextField(blank=True, default="")
    criteria = models.JSONField(default=list, blank=True)
    priority = models.IntegerField(default=0)
    state = models.CharField(max_length=12, choices=StoryState.choices)
    group = models.CharField(max_length=500, blank=True, default="")
    tags = models.JSONField(default=list, blank=True)
    depends_on = models.JSONField(default=list, blank=True)
    retries = models.IntegerField(default=0)
    failure_reason = models.TextField(blank=True, default="")
    notes = models.TextField(blank=True, default="")

    class Meta:
        ordering = ["project_id", "position"]
        verbose_name_plural = "stories"
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="story_key_unique"),
            models.CheckConstraint(condition=Q(state__in=StoryState.values), name="story_state_known"),
        ]

    def __str__(self) -> str:
        return f"{self.project.slug}/{self.key}"

    def get_absolute_url(self) -> str:
        return reverse("story", args=[self.project.slug, self.key])


class Iteration(models.Model):
    """One pass of a loop: its log file and when it ran. `ended_at` is null while it still writes."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="iterations")
    number = models.IntegerField()
    story_key = models.CharField(max_length=200, blank=True, default="")
    started_at = models.DateTimeField(null=True, blank=True)
    written_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    size = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["project_id", "number"]
        constraints = [models.UniqueConstraint(fields=["project", "number"], name="iteration_number_unique")]

    def __str__(self) -> str:
        return f"{self.project.slug} iteration {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("iteration", args=[self.project.slug, self.number])

    @property
    def duration_s(self) -> float | None:
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


class UsageEntry(models.Model):
    """What one iteration cost, as a line of usage.jsonl says; what it did not say is null, never 0.

    `at` is the line's own time, else when it was read. `key` tells a line that was read before.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="usage")
    key = models.CharField(max_length=100)
    at = models.DateTimeField()
    story_key = models.CharField(max_length=200, blank=True, default="")
    iteration = models.IntegerField(null=True, blank=True)
    cost = models.DecimalField(max_digits=16, decimal_places=9, null=True, blank=True, help_text="US dollars")
    input_tokens = models.BigIntegerField(null=True, blank=True)
    output_tokens = models.BigIntegerField(null=True, blank=True)
    cache_creation_tokens = models.BigIntegerField(null=True, blank=True)
    cache_read_tokens = models.BigIntegerField(null=True, blank=True)
    duration_s = models.FloatField(null=True, blank=True)
    duration_api_s = models.FloatField(null=True, blank=True)
    num_turns = models.IntegerField(null=True, blank=True)
    model = models.CharField(max_length=200, blank=True, default="")
    session = models.CharField(max_length=200, blank=True, default="")
    run = models.CharField(max_length=64, blank=True, default="")
    failed = models.BooleanField(default=False)
    rate_limited = models.BooleanField(default=False, help_text="It met a quota: waiting, not a failure")

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name_plural = "usage entries"
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="usage_key_unique"),
            models.CheckConstraint(condition=Q(cost=None) | Q(cost__gte=0), name="usage_cost_not_negative"),
        ]
        indexes = [models.Index(fields=["at"], name="usage_at")]

    def __str__(self) -> str:
        return f"{self.project.slug} {self.at:%Y-%m-%d %H:%M} {'?' if self.cost is None else self.cost}"
