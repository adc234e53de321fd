"""Sessions and loop histories as REST and pages show them: from their files, else from what was read of them."""

import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import CharField, Count, Exists, F, OuterRef, Q, QuerySet, Value, Window
from django.db.models.functions import RowNumber

from projects import history, journal, lines, queries, ralph
from projects.errors import Broken, Missing
from projects.journal import auditing, deriving
from projects.keeping import home_of
from projects.models import JournalFile, JournalRecord, LoopRegistry, LoopRun, Project, Tombstone, Turn
from projects.states import JournalFamily, JournalState, RecordStatus

MOST_EVENTS = 10_000
MOST_SESSIONS = 1_000
CHUNK = 2_000
SLACK_S = 5.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OLD = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Registered:
    """The loops that a registry names and what is wrong with it; None as `as_of`: who of them runs nobody has seen."""

    loops: list[history.Loop]
    problem: str
    as_of: datetime | None

    def is_old(self, now: datetime) -> bool:
        """Say whether who runs is only known from before: that worker looks each few seconds."""
        return self.as_of is None or now - self.as_of > OLD

    def of(self, pid: int) -> list[history.Loop]:
        return [loop for loop in self.loops if loop.pid == pid]


def sessions(text: str = "") -> QuerySet[JournalFile]:
    """Return the sessions, the newest first, each with `turns_total`, `pending` and `collisions`; one query."""
    stones = Tombstone.objects.filter(node=OuterRef("node"), root=OuterRef("root"), session_id=OuterRef("name"))
    rows = JournalFile.objects.filter(~Exists(stones), family=JournalFamily.TURNS)
    rows = rows.exclude(state=JournalState.SUPERSEDED)
    if text:
        rows = rows.filter(name__icontains=text)
    return rows.annotate(
        turns_total=Count("turns"),
        pending=Count("turns", filter=Q(turns__pending=True)),
        collisions=Count("turns", filter=Q(turns__collides=True)),
    ).order_by(F("written_at").desc(nulls_last=True), "-pk")


def session(session_id: str, *, after: int = 0, limit: int = MOST_EVENTS) -> dict[str, Any]:
    """Return a session: its events behind the line `after`, what is malformed, its turns and its collisions.

    Of the malformed lines, the turns and the collisions the last `limit`. No more events than are shown are held in
    memory. Missing when there is none, or it was deleted; Broken `journal-unreadable` when its file cannot be read.
    """
    root = home_of(session_id)
    _need_undeleted(session_id)
    reading = _Reading(after, limit)
    try:
        with os.fdopen(journal.open_session(root, session_id), "rb", buffering=0) as file:
            for line in lines.read(file.fileno(), check=journal.check):
                reading.take(line.number, line.value, line.malformed)
                reading.unterminated = line.value is not None and not line.terminated
        source = "file"
    except FileNotFoundError:
        _take_recorded(reading, session_id)
        source = "database"
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Broken("journal-unreadable", f"The journal of {session_id} cannot be read: {why}.") from None
    return {"session_id": session_id, **reading.told(), "source": source}


def row_of(session_id: str) -> JournalFile | None:
    """Return what is known of a session's file, of this host's where several have one of its name."""
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS, name=session_id)
    found = rows.exclude(state=JournalState.SUPERSEDED).order_by("-pk")
    return min(found, key=lambda row: row.node != settings.ANDON_NODE, default=None)


def page_of(session_id: str) -> tuple[JournalFile | None, bool]:
    """Return (what is known of a session's file, whether the file is here). Missing when it is neither, or deleted."""
    root = home_of(session_id)
    _need_undeleted(session_id)
    row, is_here = row_of(session_id), os.path.lexists(journal.path_of(root, session_id))
    if row is None and not is_here:
        raise Missing("session-not-found", f"There is no session {session_id}.")
    return row, is_here


def turns_of(file: JournalFile | None) -> QuerySet[Turn]:
    """Return the turns of a session as they were read, the newest first."""
    rows = Turn.objects.none() if file is None else Turn.objects.filter(file=file)
    return rows.order_by("-first_line", "-pk")


def events_of(file: JournalFile, turns: list[str], each: int) -> list[JournalRecord]:
    """Return the first events of some turns, at most `each` of one, in file order; without what they say."""
    rows = JournalRecord.objects.filter(file=file, key__in=turns, status=RecordStatus.EVENT)
    place = Window(RowNumber(), partition_by=F("key"), order_by=F("offset").asc())
    return list(rows.annotate(place=place).filter(place__lte=each).order_by("offset").defer("payload"))


def malformed_of(file: JournalFile | None, limit: int = 100) -> list[JournalRecord]:
    """Return the last lines that say nothing."""
    if file is None or not file.malformed:
        return []
    rows = JournalRecord.objects.filter(file=file, key="", status=RecordStatus.MALFORMED)
    return list(rows.order_by("-offset")[:limit])


class _Reading:
    """What a session says, taken in line by line: of the events no more is kept than is shown."""

    def __init__(self, after: int, limit: int) -> None:
        self.after, self.limit = after, limit
        self.total, self.unterminated = 0, False
        self.events: list[dict[str, Any]] = []
        self.last_shown = 0
        self.next: int | None = None
        self.ends: dict[int, dict[str, Any]] = {}
        self.turns: dict[str, journal.TurnState] = {}
        self.malformed: deque[dict[str, Any]] = deque(maxlen=limit)

    def take(self, line: int, event: dict[str, Any] | None, malformed: Callable[[], dict[str, Any]]) -> None:
        if event is None:
            self.malformed.append(malformed())
            return
        self.total += 1
        deriving.feed(self.turns, event, line)
        if event["event"].strip() in deriving.TERMINAL:
            self.ends[line] = event
        if line <= self.after:
            return
        if len(self.events) < self.limit:
            self.events.append(event)
            self.last_shown = line
        else:
            self.next = self.last_shown

    def told(self) -> dict[str, Any]:
        turns = list(self.turns.values())
        collided = [turn for turn in turns if turn.collides]
        return {
            "events": self.events,
            "malformed": list(self.malformed),
            "turns": [turn.told() for turn in turns[-self.limit :]],
            "collisions": [turn.collision(self.ends) for turn in collided[-self.limit :]],
            "total_events": self.total,
            "next": self.next,
            "unterminated": self.unterminated,
        }


def _take_recorded(reading: _Reading, session_id: str) -> None:
    """Take in what was read of a session whose file is not here. Raises Missing."""
    file = row_of(session_id)
    if file is None:
        raise Missing("session-not-found", f"There is no session {session_id}.")
    for row in JournalRecord.objects.filter(file=file).order_by("offset").iterator(CHUNK):
        event = json.loads(row.payload) if row.status == RecordStatus.EVENT else None
        reading.take(row.line_no, event, partial(_malformed, row))


def _malformed(row: JournalRecord) -> dict[str, Any]:
    shown = {"line": row.line_no, "offset": row.offset, "raw": row.payload}
    return {**shown, "sha256": row.sha256, "kind": row.kind}


def _need_undeleted(session_id: str) -> None:
    if Tombstone.objects.filter(node=settings.ANDON_NODE, session_id=session_id).exists():
        raise Missing("session-not-found", f"The session {session_id} was deleted.")


def loop_history(project: Project, limit: int) -> dict[str, Any]:
    """Return what the files beside a project's loop say.

    {events, summary, runs, malformed, loops, loops_as_of, merges, problems}: `events` are the last `limit`, oldest
    first, `runs` all. Without a history everything is empty. Of a project on another host it is what was read there.
    """
    others = beside(project)
    problems = list(others["problems"])
    try:
        found = history.read(Path(project.path), limit) if is_here(project) else _recorded_history(project, limit)
    except FileNotFoundError:
        found = history.History([], [], history.Summary(), [])
    except OSError as error:
        found = history.History([], [], history.Summary(), [])
        problems.insert(0, f"{history.HISTORY}: {error}")
    return {
        "events": found.events,
        "summary": found.summary.told(),
        "runs": [run.told(alive=is_alive(run, project, others["registered"])) for run in found.runs],
        "malformed": [*found.malformed, *others["malformed"]],
        "loops": others["loops"],
        "loops_as_of": others["registered"].as_of,
        "merges": others["merges"],
        "problems": problems,
    }


def _recorded_history(project: Project, limit: int) -> history.History:
    summed, kept = history.Summary(), deque[dict[str, Any]](maxlen=limit)
    malformed = deque[dict[str, Any]](maxlen=100)
    for row in _records_of(project).order_by("offset").iterator(CHUNK):
        if row.status == RecordStatus.EVENT:
            event = json.loads(row.payload)
            kept.append(event)
            summed.feed(history.line_of(event))
        else:
            malformed.append(_malformed(row))
    runs = [row.run() for row in runs_of(project).order_by("first_line")]
    return history.History(list(kept), list(malformed), summed, runs)


def is_here(project: Project) -> bool:
    """Say whether a project's files lie on this host: what has their path here is not theirs else."""
    return project.node == settings.ANDON_NODE


def is_alive(run: history.Run, project: Project, registered: Registered) -> bool | None:
    """Say whether an open run's process runs: it is the project's loop, or one that the registry names and it runs.

    None when nobody has seen. Of two that had one pid, one after the other, the earlier was last heard of before the
    later began.
    """
    if not run.is_open:
        return False
    is_of_loop = project.running and _was_heard_of(run, since=project.loop_started_at)
    if run.pid is None:
        return is_of_loop
    if is_of_loop and run.pid == project.pid:
        return True
    if registered.as_of is None:
        return None
    states = {loop.state for loop in registered.of(run.pid) if _was_heard_of(run, loop.started_at)}
    return True if "running" in states else None if "unknown" in states else False


def _was_heard_of(run: history.Run, since: datetime | None) -> bool:
    return since is None or run.last_at is None or run.last_at.timestamp() >= since.timestamp() - SLACK_S


def runs_of(project: Project) -> QuerySet[LoopRun]:
    """Return the runs of a project as they were read, the newest first."""
    rows = LoopRun.objects.filter(project=project.slug, file__root=project.path, file__node=project.node)
    return rows.exclude(file__state=JournalState.SUPERSEDED).order_by("-first_line")


def records_of(project: Project, limit: int = 40) -> list[JournalRecord]:
    """Return the newest lines that were read of a project's history."""
    return list(_records_of(project).order_by("-offset")[:limit])


def _records_of(project: Project) -> QuerySet[JournalRecord]:
    rows = JournalRecord.objects.filter(
        file__family=JournalFamily.HISTORY, file__root=project.path, file__node=project.node
    )
    return rows.exclude(status=RecordStatus.SUPERSEDED)


def odd_history(project: Project, now: datetime) -> list[str]:
    """Return what is wrong with the file of a project's history, in sentences."""
    rows = JournalFile.objects.filter(family=JournalFamily.HISTORY, root=project.path, node=project.node)
    file = rows.exclude(state=JournalState.SUPERSEDED).first()
    if file is None:
        return []
    found = []
    if file.state == JournalState.UNREADABLE:
        found.append(f"{history.HISTORY} cannot be read: {file.last_error}. What was read before is kept.")
    if file.state == JournalState.MISSING:
        found.append(f"{history.HISTORY} is gone. What was read of it is kept.")
    if file.generation > 1:
        at = f"{file.found_at:%Y-%m-%d %H:%M} UTC"
        found.append(f"{history.HISTORY} is not the file that was read before: it was rewritten, last before {at}.")
    if is_here(project) and _is_torn(project, now):
        found.append(f"{history.HISTORY} ends in a torn line: {auditing.ADVICE['torn_tail']}")
    return found


def _is_torn(project: Project, now: datetime) -> bool:
    """Say whether a history has a last line without its end, and has had it for a while."""
    try:
        descriptor = ralph.open_inside(Path(project.path), history.HISTORY)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        quiet = now.timestamp() - status.st_mtime >= auditing.QUIET_S
        return quiet and status.st_size > 0 and os.pread(file.fileno(), 1, status.st_size - 1) != b"\n"


def registered(project: Project) -> Registered:
    """Return who of a project's registered loops runs, as the worker of its host saw it last.

    Before that worker has looked nothing is known of them but what a file on this host says.
    """
    row = LoopRegistry.objects.filter(project=project).first()
    if row is not None:
        return Registered(row.found(), row.problem, row.judged_at)
    if not is_here(project):
        return Registered([], "", None)
    # No page looks at processes: they may be another host's, or another container's.
    return Registered(*history.read_registry(Path(project.path), booted_at=EPOCH, is_alive=lambda *_: None), None)


def beside(project: Project) -> dict[str, Any]:
    """Return what the files beside a history say: {registered, loops, merges, malformed, problems}.

    Of a project on another host they are not read here; a problem says so.
    """
    found = registered(project)
    merges, problems = history.Merges([], []), list[str]()
    if not is_here(project):
        problems.append(f"Its files lie on {project.node}. What is shown of its history was read there.")
    else:
        try:
            merges = history.read_merges(Path(project.path))
        except OSError as error:
            problems.append(f"{error}")
    return {
        "registered": found,
        "loops": found.loops,
        "merges": merges.entries,
        "malformed": merges.malformed,
        "problems": [*problems, *([found.problem] if found.problem else [])],
    }


def pending_sessions() -> set[str]:
    """Return the sessions that have turns without an end, as they were read."""
    return set(Turn.objects.filter(pending=True).values_list("session_id", flat=True).distinct()[:MOST_SESSIONS])


def roots() -> list[str]:
    """Return where turn journals lie."""
    return [str(root / journal.DIRECTORY) for root in settings.ANDON_JOURNAL_ROOTS]


def needs(now: datetime) -> list[dict[str, Any]]:
    """Return what in the journals needs somebody now: {kind, count}; one query."""
    day = now - queries.NEWS
    files = JournalFile.objects.filter(family=JournalFamily.TURNS)
    kinds: dict[str, QuerySet[Any]] = {
        "pending": Turn.objects.filter(pending=True, updated_at__lt=now - queries.PENDING),
        "collided": Turn.objects.filter(collides=True, updated_at__gte=day),
        "unreadable": files.filter(state=JournalState.UNREADABLE),
        # The old one was written whenever it was; the new one was met when it was found to be another.
        "rewritten": files.filter(generation__gt=1, found_at__gte=day).exclude(state=JournalState.SUPERSEDED),
        "malformed": files.filter(malformed__gt=0, written_at__gte=day),
    }
    counts = [
        rows.order_by().annotate(kind=Value(kind, CharField())).values("kind").annotate(count=Count("pk"))
        for kind, rows in kinds.items()
    ]
    return [row for row in counts[0].union(*counts[1:], all=True) if row["count"]]
