"""What the append-only files say: the files, every line that was read, and two projections of those."""

from typing import Any

from django.db import models
from django.db.models import Q
from django.urls import NoReverseMatch, reverse

from projects.history import Loop, Outcome, Run
from projects.models.files import Project
from projects.states import JournalFamily, JournalState, RecordStatus


class JournalFile(models.Model):
    """One generation of one file, and how far it was read. Its identity is the path; the inode is a hint.

    `name` is the session's id or the project's slug. `fingerprint` is the SHA-256 of the first `fp_len` (at most 1,024)
    bytes before `committed_offset`, `tail_hash` that of the last (at most 256). `mark` is what the kernel said of it
    when all of it had been read, "" while there is more.
    """

    node = models.CharField(max_length=64)
    family = models.CharField(max_length=8, choices=JournalFamily.choices)
    root = models.CharField(max_length=4096)
    relpath = models.CharField(max_length=255)
    name = models.CharField(max_length=128)
    generation = models.IntegerField(default=1)
    dev = models.BigIntegerField(default=0)
    inode = models.BigIntegerField(default=0)
    fingerprint = models.CharField(max_length=64, blank=True, default="")
    fp_len = models.IntegerField(default=0)
    committed_offset = models.BigIntegerField(default=0)
    committed_line = models.BigIntegerField(default=0)
    tail_hash = models.CharField(max_length=64, blank=True, default="")
    malformed = models.IntegerField(default=0)
    mark = models.CharField(max_length=80, blank=True, default="")
    state = models.CharField(max_length=10, choices=JournalState.choices, default=JournalState.READ)
    last_error = models.CharField(max_length=300, blank=True, default="")
    written_at = models.DateTimeField(null=True, blank=True)
    found_at = models.DateTimeField()

    class Meta:
        ordering = ["family", "name", "generation"]
        constraints = [
            models.UniqueConstraint(fields=["node", "root", "relpath", "generation"], name="journal_generation_unique"),
            models.UniqueConstraint(
                fields=["node", "root", "relpath"],
                condition=~Q(state="superseded"),
                name="one_current_journal_a_path",
            ),
            models.CheckConstraint(condition=Q(committed_offset__gte=0, fp_len__gte=0), name="journal_offsets"),
        ]
        indexes = [models.Index(fields=["family", "name"], name="journal_name")]

    def __str__(self) -> str:
        return f"{self.relpath} ({self.generation})"

    def get_absolute_url(self) -> str:
        name = "session" if self.family == JournalFamily.TURNS else "history"
        try:
            return reverse(name, args=[self.name])
        except NoReverseMatch:
            return ""

    @property
    def subject(self) -> str:
        return f"{'session' if self.family == JournalFamily.TURNS else 'project'}:{self.name}"


class JournalRecord(models.Model):
    """One line as it was read. `offset` and `length` (with its LF) are bytes, `at` is UTC where its time is one.

    `payload` is the line itself, of a malformed one as it is shown. `key` is the turn or the run it was counted to.
    """

    file = models.ForeignKey(JournalFile, on_delete=models.CASCADE, related_name="records")
    offset = models.BigIntegerField()
    length = models.BigIntegerField()
    line_no = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=RecordStatus.choices)
    kind = models.CharField(max_length=64, blank=True)
    key = models.CharField(max_length=128, blank=True)
    at = models.DateTimeField(null=True, blank=True)
    raw_time = models.CharField(max_length=64, blank=True)
    payload = models.TextField(blank=True)

    class Meta:
        ordering = ["file_id", "offset"]
        constraints = [
            models.UniqueConstraint(fields=["file", "offset"], name="journal_line_unique"),
            models.CheckConstraint(condition=Q(status__in=RecordStatus.values), name="record_status_known"),
        ]
        indexes = [models.Index(fields=["file", "key"], name="journal_line_of")]

    def __str__(self) -> str:
        return f"line {self.line_no} of {self.file_id}"


class Turn(models.Model):
    """What became of one turn. A projection of its file's records: `rebuild_journals` makes the same again.

    `folded` is all of it (journal.TurnState as JSON), the other columns are what lists ask for.
    """

    file = models.ForeignKey(JournalFile, on_delete=models.CASCADE, related_name="turns")
    session_id = models.CharField(max_length=128)
    turn_id = models.CharField(max_length=128)
    raw_state = models.CharField(max_length=64)
    effective_state = models.CharField(max_length=20)
    pending = models.BooleanField(default=True)
    collides = models.BooleanField(default=False)
    submitted_at = models.DateTimeField(null=True, blank=True)
    updated_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    first_line = models.BigIntegerField()
    folded = models.TextField()

    class Meta:
        ordering = ["session_id", "first_line"]
        constraints = [models.UniqueConstraint(fields=["file", "turn_id"], name="turn_unique_in_file")]
        indexes = [
            models.Index(fields=["updated_at"], name="turn_pending", condition=Q(pending=True)),
            models.Index(fields=["updated_at"], name="turn_collides", condition=Q(collides=True)),
        ]

    def __str__(self) -> str:
        return f"{self.session_id}/{self.turn_id}"

    def get_absolute_url(self) -> str:
        return reverse("session", args=[self.session_id])

    @property
    def subject(self) -> str:
        return f"turn:{self.session_id}/{self.turn_id}"


class LoopRun(models.Model):
    """One run of a project's loop as its history tells it (history.Run). A projection, as Turn is."""

    file = models.ForeignKey(JournalFile, on_delete=models.CASCADE, related_name="runs")
    project = models.CharField(max_length=80)
    key = models.CharField(max_length=128)
    first_line = models.BigIntegerField()
    last_line = models.BigIntegerField()
    prompt = models.TextField(blank=True, default="")
    pid = models.IntegerField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    last_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.CharField(max_length=20, blank=True, default="")
    reason = models.CharField(max_length=200, blank=True, default="")
    ambiguous = models.BooleanField(default=False)
    resumed = models.IntegerField(default=0)
    iteration = models.IntegerField(default=0)
    iterations_started = models.IntegerField(default=0)
    iterations_completed = models.IntegerField(default=0)
    iterations_failed = models.IntegerField(default=0)
    events_published = models.IntegerField(default=0)
    merge_state = models.CharField(max_length=16, blank=True, default="")
    merge_commit = models.CharField(max_length=200, blank=True, default="")
    merge_reason = models.CharField(max_length=200, blank=True, default="")

    class Meta:
        ordering = ["project", "first_line"]
        constraints = [models.UniqueConstraint(fields=["file", "key"], name="loop_run_unique_in_file")]
        indexes = [models.Index(fields=["project", "-first_line"], name="loop_run_of_project")]

    def __str__(self) -> str:
        return f"{self.project} {self.key}"

    def get_absolute_url(self) -> str:
        return reverse("history", args=[self.project])

    def run(self) -> Run:
        """Return it as the reader of histories knows it."""
        return Run(**{name: getattr(self, name) for name in Run.__dataclass_fields__})

    def outcome(self, *, alive: bool | None) -> Outcome:
        return self.run().outcome(alive=alive)


class LoopRegistry(models.Model):
    """Who of the loops that a project's `.ralph/loops.json` names runs, as the worker of its node saw it last.

    No projection of lines: it is judged by looking at processes, which only that worker does. `loops` are history.Loop
    as JSON, `problem` what is wrong with the file. Without a row nobody has looked yet.
    """

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="registry")
    loops = models.JSONField(default=list, blank=True)
    problem = models.CharField(max_length=300, blank=True, default="")
    judged_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "loop registries"

    def __str__(self) -> str:
        return f"loops of {self.project.slug}"

    def get_absolute_url(self) -> str:
        return reverse("history", args=[self.project.slug])

    def found(self) -> list[Loop]:
        """Return the loops as the reader of registries knows them."""
        return [Loop.of(told) for told in self.loops]


class Tombstone(models.Model):
    """A session that was deleted. Its file is gone once `buried_at` is set; nothing is appended to it any more."""

    node = models.CharField(max_length=64)
    root = models.CharField(max_length=4096)
    session_id = models.CharField(max_length=128)
    deleted_by = models.CharField(max_length=200)
    deleted_at = models.DateTimeField()
    buried_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-deleted_at"]
        constraints = [
            models.UniqueConstraint(fields=["node", "root", "session_id"], name="tombstone_unique"),
        ]
        indexes = [models.Index(fields=["node"], name="tombstone_open", condition=Q(buried_at=None))]

    def __str__(self) -> str:
        return self.session_id


RUN_COLUMNS: tuple[str, ...] = tuple(Run.__dataclass_fields__)


def columns(model: type[models.Model]) -> list[str]:
    """Return the names of a table's columns but its key, for SQL that writes many rows at once."""
    fields: list[Any] = list(model._meta.concrete_fields)  # noqa: SLF001 (its public name)
    return [field.column for field in fields if not field.primary_key]
