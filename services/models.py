"""Everything that runs: the workers' hosts and what they run."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse

from services.processes import Identity
from services.states import LIVE, SILENT_AFTER, UP, Cause, HostStatus, Purpose, Restart, Status

SPEC_FIELDS = (
    "cmd",
    "args",
    "cwd",
    "env",
    "ports",
    "ttl_minutes",
    "attrs",
    "healthcheck",
    "restart",
    "stop_grace_s",
)


class WorkerHost(models.Model):
    """One host's worker: the lease on its node and its last tick."""

    node = models.CharField(max_length=64, unique=True)
    host_name = models.CharField(max_length=255, blank=True, default="")
    status = models.CharField(max_length=8, choices=HostStatus.choices)
    pid = models.IntegerField()
    start_ticks = models.BigIntegerField()
    boot_id = models.CharField(max_length=36)
    version = models.CharField(max_length=32)
    started_at = models.DateTimeField()
    tick_at = models.DateTimeField()
    told_at = models.DateTimeField()
    watching = models.CharField(max_length=16, blank=True, default="")
    jobs = models.JSONField(default=dict, blank=True)

    # Set by queries.hosts for pages.
    shown: HostStatus

    class Meta:
        ordering = ["node"]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=HostStatus.values), name="worker_host_status_known")
        ]

    def __str__(self) -> str:
        return self.node

    def seen_at(self, now: datetime) -> HostStatus:
        """The status, silent as soon as the last tick is 15 s old, whether or not anybody has told so yet."""
        late = self.status == HostStatus.TICKING and now - self.tick_at > SILENT_AFTER
        return HostStatus.SILENT if late else HostStatus(self.status)

    @property
    def subject(self) -> str:
        return f"worker:{self.node}"


class ManagedProcess(models.Model):
    """One long-running child that Andon owns: what it should be, who it is now, and what is to be done when.

    `project` is a slug as text. `generation` counts its starts; every write about one life is guarded by it. While
    STOPPING or RESTARTING, `outcome` is the status that follows once nothing is left, `members` are the processes
    seen so far as [pid, start ticks], `left` the pids that outlived KILL or could not be seen. `exits` are the last
    ends, newest first: {at, generation, pid, code, cause, up_s}, `at` ISO 8601.
    """

    project = models.CharField(max_length=80)
    name = models.CharField(max_length=64)
    purpose = models.CharField(max_length=8, choices=Purpose.choices, default=Purpose.SERVICE)
    node = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=Status.choices)
    since = models.DateTimeField(help_text="When the status last changed")
    generation = models.PositiveIntegerField(default=1)
    outcome = models.CharField(max_length=10, choices=Status.choices, blank=True, default="")

    cmd = models.CharField(max_length=4096)
    args = models.JSONField(default=list, blank=True)
    cwd = models.CharField(max_length=4096)
    env = models.JSONField(default=dict, blank=True)
    ports = models.JSONField(default=list, blank=True)
    ttl_minutes = models.PositiveIntegerField(null=True, blank=True)
    attrs = models.JSONField(default=dict, blank=True)
    healthcheck = models.JSONField(default=dict, blank=True)
    restart = models.CharField(max_length=10, choices=Restart.choices, default=Restart.NEVER)
    stop_grace_s = models.PositiveIntegerField(default=10)

    owner_agent = models.CharField(max_length=128, blank=True, default="")
    owner_wi = models.CharField(max_length=200, blank=True, default="")
    declared_by = models.CharField(max_length=200, blank=True, default="")
    declared_at = models.DateTimeField()
    batch = models.CharField(max_length=32, blank=True, default="", help_text="What was declared together")
    position = models.PositiveIntegerField(default=0)

    pid = models.IntegerField(null=True, blank=True)
    start_ticks = models.BigIntegerField(null=True, blank=True)
    boot_id = models.CharField(max_length=36, blank=True, default="")
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    exit_code = models.IntegerField(null=True, blank=True)
    exit_cause = models.CharField(max_length=16, choices=Cause.choices, blank=True, default="")
    last_error = models.CharField(max_length=2500, blank=True, default="")
    exits = models.JSONField(default=list, blank=True)
    restarts = models.PositiveIntegerField(default=0)
    crashes = models.JSONField(default=list, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    members = models.JSONField(default=list, blank=True)
    left = models.JSONField(default=list, blank=True)

    expires_at = models.DateTimeField(null=True, blank=True)
    warn_at = models.DateTimeField(null=True, blank=True)
    health_by = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True)
    term_at = models.DateTimeField(null=True, blank=True)
    kill_at = models.DateTimeField(null=True, blank=True)
    next_probe_at = models.DateTimeField(null=True, blank=True)

    last_health_at = models.DateTimeField(null=True, blank=True)
    misses = models.PositiveIntegerField(default=0)
    passes = models.PositiveIntegerField(default=0)
    strip = models.JSONField(default=list, blank=True, help_text="The last 60 probes: [epoch ms, 1 or 0, ms taken]")
    usage = models.JSONField(default=list, blank=True, help_text="The last 120 samples: [epoch s, cpu %, rss bytes]")
    log_head = models.BigIntegerField(default=0)
    log_mode = models.CharField(max_length=12, blank=True, default="")

    class Meta:
        ordering = ["project", "name"]
        verbose_name_plural = "managed processes"
        constraints = [
            models.UniqueConstraint(fields=["project", "purpose", "name"], name="process_name_unique"),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="process_status_known"),
            models.CheckConstraint(condition=Q(purpose__in=Purpose.values), name="process_purpose_known"),
            models.CheckConstraint(
                condition=Q(pid__isnull=True, start_ticks__isnull=True, boot_id="")
                | (Q(pid__gt=1, start_ticks__isnull=False) & ~Q(boot_id="")),
                name="process_identity_whole",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=sorted(UP - {Status.STARTING})) | Q(pid__isnull=False),
                name="process_up_has_pid",
            ),
            models.CheckConstraint(
                condition=Q(status__in=sorted(LIVE)) | Q(pid__isnull=True), name="process_ended_has_no_pid"
            ),
            models.CheckConstraint(
                condition=~Q(status=Status.BACKOFF) | Q(retry_at__isnull=False, pid__isnull=True),
                name="process_backoff_has_retry",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=[Status.STOPPING, Status.RESTARTING]) | ~Q(outcome=""),
                name="process_going_has_outcome",
            ),
        ]
        indexes = [
            models.Index(fields=["node", "status"], name="process_live", condition=Q(status__in=sorted(LIVE))),
            models.Index(fields=["next_probe_at"], name="process_probe", condition=Q(next_probe_at__isnull=False)),
            models.Index(fields=["expires_at"], name="process_expires", condition=Q(expires_at__isnull=False)),
            models.Index(fields=["warn_at"], name="process_warn", condition=Q(warn_at__isnull=False)),
            models.Index(fields=["health_by"], name="process_health_by", condition=Q(health_by__isnull=False)),
            models.Index(fields=["retry_at"], name="process_retry", condition=Q(retry_at__isnull=False)),
            models.Index(fields=["batch", "position"], name="process_batch", condition=~Q(batch="")),
        ]

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"

    def get_absolute_url(self) -> str:
        if self.purpose == Purpose.SERVICE:
            return reverse("service", args=[self.project, self.name])
        return reverse("process", args=[self.pk])

    @property
    def subject(self) -> str:
        """What its events are about; a loop is its project's."""
        return f"project:{self.project}" if self.purpose == Purpose.LOOP else f"service:{self.project}/{self.name}"

    @property
    def is_live(self) -> bool:
        return self.status in LIVE

    @property
    def identity(self) -> Identity | None:
        """The leader's, None while there is none."""
        if self.pid is None or self.start_ticks is None:
            return None
        return Identity(self.node, self.boot_id, self.pid, self.start_ticks)

    @property
    def marker(self) -> str:
        """The value of ANDON_SERVICE in this generation's environment, without the generation."""
        return f"{self.node}.{self.pk}."

    @property
    def log_name(self) -> str:
        return f"{self.pk}-{self.name}.log"

    @property
    def log_path(self) -> str:
        """Relative to ANDON_HOME."""
        return f"logs/services/{self.log_name}"

    @property
    def spec(self) -> dict[str, Any]:
        """The normalized spec it was declared by."""
        return {"name": self.name, **{field: getattr(self, field) for field in SPEC_FIELDS}}


LOG_FOLDER = settings.ANDON_HOME / "logs" / "services"
