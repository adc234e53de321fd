"""Sessions and loop histories as REST and pages show them: from their files, else from what was read of them."""

import json
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import CharField, Count, Exists, F, OuterRef, Q, QuerySet, Value

from projects import history, journal, queries
from projects.errors import Broken, Missing
from projects.intake.places import session_place
from projects.journal import auditing
from projects.keeping import home_of
from projects.models import JournalFile, JournalRecord, LoopRun, Project, Tombstone, Turn
from projects.states import JournalFamily, JournalState, RecordStatus
from services import processes
from services.processes import Identity

MOST_EVENTS = 10_000
MOST_FINDINGS = 1_000
SLACK_S = 5.0
MOST_AUDITED = 5_000
# (root, session) -> (what the kernel said of the file, its findings): a file that is as it was says what it said.
_audited: OrderedDict[tuple[str, str], tuple[tuple[int, ...], list[journal.Finding]]] = OrderedDict()


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

    Missing when there is none, or it was deleted; Broken `journal-unreadable` when its file cannot be read.
    """
    root = home_of(session_id)
    if Tombstone.objects.filter(node=settings.ANDON_NODE, session_id=session_id).exists():
        raise Missing("session-not-found", f"The session {session_id} was deleted.")
    try:
        found, source = journal.read_journal(root, session_id), "file"
    except FileNotFoundError:
        found, source = _recorded(session_id), "database"
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Broken("journal-unreadable", f"The journal of {session_id} cannot be read: {why}.") from None
    states = journal.derive_states(found.events, found.numbers)
    shown = [(event, line) for event, line in zip(found.events, found.numbers, strict=True) if line > after]
    return {
        "session_id": session_id,
        "events": [event for event, _ in shown[:limit]],
        "malformed": found.malformed[:limit],
        "numbers": [line for _, line in shown[:limit]],
        "turns": states.turns[:limit],
        "collisions": states.collisions[:limit],
        "total_events": len(found.events),
        "next": shown[limit - 1][1] if len(shown) > limit else None,
        "unterminated": found.unterminated,
        "source": source,
    }


def _recorded(session_id: str) -> journal.Journal:
    """Return what was read of a session whose file is not here. Raises Missing."""
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS, name=session_id)
    file = rows.exclude(state=JournalState.SUPERSEDED).first()
    if file is None:
        raise Missing("session-not-found", f"There is no session {session_id}.")
    events, malformed, numbers = [], [], []
    records = JournalRecord.objects.filter(file=file)
    for row in records.order_by("offset")[:MOST_EVENTS]:
        if row.status == RecordStatus.EVENT:
            events.append(json.loads(row.payload))
            numbers.append(row.line_no)
        else:
            malformed.append(
                {
                    "line": row.line_no,
                    "offset": row.offset,
                    "raw": row.payload,
                    "sha256": row.sha256,
                    "kind": row.kind,
                }
            )
    return journal.Journal(events, malformed, numbers, unterminated=False)


def audit(now: datetime) -> list[journal.Finding]:
    """Return the findings of all journals on this host, at most 1,000, those of files that were rewritten last."""
    found: list[journal.Finding] = []
    for root in settings.ANDON_JOURNAL_ROOTS:
        for session_id in journal.session_ids(root):
            found += _audit(root, session_id, now.timestamp())
        found += auditing.illegal(root)
        if len(found) >= MOST_FINDINGS:
            break
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS, state=JournalState.SUPERSEDED).order_by("-pk")
    for row in rows[:100]:
        detail = f"generation {row.generation} ended after line {row.committed_line}"
        found.append(auditing.finding_of("journal_rewritten", row.name, detail))
    return found[:MOST_FINDINGS]


def findings_of(session_id: str, now: datetime) -> list[journal.Finding]:
    """Return the findings of one session."""
    return _audit(home_of(session_id), session_id, now.timestamp())


def _audit(root: Path, session_id: str, now: float) -> list[journal.Finding]:
    try:
        status = session_place(root, session_id).stat()
    except OSError:
        return []
    # A tail counts as torn only once it is quiet.
    quiet = now - status.st_mtime >= auditing.QUIET_S
    mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, quiet)
    kept = _audited.get((str(root), session_id))
    if kept is not None and kept[0] == mark:
        return kept[1]
    found = journal.audit_session(root, session_id, now=now)
    if quiet and not any(finding["kind"] == "future_timestamp" for finding in found):
        _audited[str(root), session_id] = (mark, found)
        while len(_audited) > MOST_AUDITED:
            _audited.popitem(last=False)
    return found


def loop_history(project: Project, limit: int) -> dict[str, Any]:
    """Return what the files beside a project's loop say: {events, summary, runs, malformed, loops, merges, problems}.

    `events` are the last `limit`, oldest first, `runs` all. Without a history everything is empty.
    """
    root = Path(project.path)
    problems = []
    try:
        found = history.read(root, limit)
    except FileNotFoundError:
        found = history.History([], [], history.Summary(), [])
    except OSError as error:
        found = history.History([], [], history.Summary(), [])
        problems.append(f"{history.HISTORY}: {error}")
    others = beside(project)
    alive = {run.key for run in found.runs if is_alive(run, project, others["living"])}
    return {
        "events": found.events,
        "summary": found.summary.told(),
        "runs": [run.told(alive=run.key in alive) for run in found.runs],
        "malformed": [*found.malformed, *others["malformed"]],
        "loops": others["loops"],
        "merges": others["merges"],
        "problems": [*problems, *others["problems"]],
    }


def is_alive(run: history.Run, project: Project, living: set[int | None]) -> bool:
    """Say whether an open run's process runs: it is the project's loop, or the registry's and alive."""
    if not run.is_open:
        return False
    if run.pid is not None:
        return (project.running and run.pid == project.pid) or run.pid in living
    started = project.loop_started_at
    is_of_loop = started is None or run.last_at is None or run.last_at.timestamp() >= started.timestamp() - SLACK_S
    return project.running and is_of_loop


def runs_of(project: Project) -> QuerySet[LoopRun]:
    """Return the runs of a project as they were read, the newest first."""
    rows = LoopRun.objects.filter(project=project.slug, file__root=project.path)
    return rows.exclude(file__state=JournalState.SUPERSEDED).order_by("-first_line")


def records_of(project: Project, limit: int = 40) -> list[JournalRecord]:
    """Return the newest lines that were read of a project's history."""
    rows = JournalRecord.objects.filter(file__family=JournalFamily.HISTORY, file__root=project.path)
    return list(rows.exclude(status=RecordStatus.SUPERSEDED).order_by("-offset")[:limit])


def beside(project: Project) -> dict[str, Any]:
    """Return what the files beside a history say: {loops, living, merges, malformed, problems}."""
    root, problems = Path(project.path), []
    try:
        merges = history.read_merges(root)
    except OSError as error:
        merges = history.Merges([], [])
        problems.append(f"{error}")
    loops, problem = history.read_registry(root, booted_at=_booted_at(), is_alive=_is_alive)
    return {
        "loops": loops,
        "living": {loop.pid for loop in loops if loop.state == "running"},
        "merges": merges.entries,
        "malformed": merges.malformed,
        "problems": [*problems, *([problem] if problem else [])],
    }


def pending_sessions() -> set[str]:
    """Return the sessions that have turns without an end, as they were read."""
    return set(Turn.objects.filter(pending=True).values_list("session_id", flat=True).distinct()[:MOST_FINDINGS])


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
        "rewritten": files.filter(state=JournalState.SUPERSEDED, written_at__gte=day),
        "malformed": files.filter(malformed__gt=0, written_at__gte=day),
    }
    counts = [
        rows.order_by().annotate(kind=Value(kind, CharField())).values("kind").annotate(count=Count("pk"))
        for kind, rows in kinds.items()
    ]
    return [row for row in counts[0].union(*counts[1:], all=True) if row["count"]]


def _booted_at() -> datetime:
    try:
        return datetime.fromtimestamp(
            processes.started_at(Identity(settings.ANDON_NODE, processes.boot_id(), 1, 0)), UTC
        )
    except OSError:
        return datetime.fromtimestamp(0, UTC)


def _is_alive(pid: int, started: datetime | None) -> bool | None:
    """Say whether the process that had a pid at a time is still there; None when that cannot be told."""
    try:
        identity = processes.identify(pid, settings.ANDON_NODE)
        if identity is None or started is None:
            return False if identity is None else None
        return processes.started_at(identity) <= started.timestamp() + SLACK_S
    except (OSError, ValueError):
        return None
