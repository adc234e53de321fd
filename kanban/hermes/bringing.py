"""Bring a Hermes board in: what is not here yet, in bounded transactions, so that it can be done again at any point.

A task is known again by its id (or the one that its origin gave it here) together with when it was made; a comment by
all that it says; an event by its id there.
"""

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kanban.hermes.holding import held, let_go
from kanban.hermes.reading import Board, Row
from kanban.hermes.translating import KIND, NOTE_BEGINS, UNKNOWN_TIME, Card, card, moment, note, payload, text
from kanban.hermes.weaving import weave
from kanban.models import Comment, Task
from kanban.queries.events import KINDS
from kanban.states import BlockKind, Status
from projects.events import By, record, writing
from projects.models import Event

AUTHOR = "import"
TASKS_AT_ONCE = 100
ATTACHED_SHOWN = 20
MOST_LINES = 500
# Kinds of an event that say why a task is blocked.
BREAKS = frozenset({"spawn_auto_blocked", "gave_up"})
BLOCKS = BREAKS | {"blocked"}

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Brought:
    """What was brought in, or would be; `known` is what was here already. `lines` say what was not, or otherwise."""

    tasks: int = 0
    comments: int = 0
    links: int = 0
    events: int = 0
    known: int = 0
    mapped: int = 0
    ready: int = 0
    lines: list[str] = field(default_factory=list)
    unsaid: int = 0

    def say(self, line: str) -> None:
        if len(self.lines) < MOST_LINES:
            self.lines.append(line)
        else:
            self.unsaid += 1

    @property
    def is_new(self) -> bool:
        return bool(self.tasks or self.comments or self.links or self.events)


@dataclass(slots=True)
class _Bringing:
    board: Board
    apply: bool
    by: By
    now: datetime
    progress: Progress
    done: Brought = field(default_factory=Brought)
    # The id here of each task there.
    ids: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    # The ids there of those that wait for others.
    waiting: set[str] = field(default_factory=set)
    # (subject, id there) of the events that tell of a task's making, which stand in its own transaction.
    told: set[tuple[str, int]] = field(default_factory=set)

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return writing() if self.apply else contextlib.nullcontext()


def bring(
    board: Board, *, apply: bool, by: By, now: datetime, progress: Progress = lambda what, done, total: None
) -> Brought:
    """Bring tasks, comments, links and events in; without `apply` only count what would be.

    `progress` is told what goes on, how many are done and how many there are. Records task.created and the board's
    own events with their times (payload.imported), task.imported after kinds that are not known here, task.ready of
    what waited and waits for nobody, and board.imported once when anything was new.
    """
    at_work = _Bringing(board, apply, by, now, progress)
    _say_schema(at_work)
    at_work.waiting |= {text(row["child_id"], 200) for batch in board.links() for row in batch}
    _bring_tasks(at_work)
    _bring_links(at_work)
    if apply:
        let_go(by=by, now=now)
    _bring_events(at_work)
    done = at_work.done
    if apply and done.is_new:
        counts: dict[str, Any] = {
            "tasks": done.tasks,
            "comments": done.comments,
            "links": done.links,
            "events": done.events,
        }
        said = ", ".join(f"{number} {name}" for name, number in counts.items())
        with writing():
            record("board.imported", "board:hermes", by=by, now=now, said=said, known=done.known or None, **counts)
    return done


def _say_schema(at_work: _Bringing) -> None:
    for name in at_work.board.extra:
        at_work.done.say(f"column tasks.{text(name, 80)} is not known here: its values are kept in each task's note")
    for name, count in at_work.board.beside.items():
        kept = "kept in the notes of their tasks" if name in at_work.board.attached else "not brought in"
        at_work.done.say(f"table {text(name, 80)} is not known here: {count} rows, {kept}")


def _bring_tasks(at_work: _Bringing) -> None:
    total, seen = at_work.board.count("tasks"), 0
    for batch in at_work.board.tasks():
        for start in range(0, len(batch), TASKS_AT_ONCE):
            rows = batch[start : start + TASKS_AT_ONCE]
            _bring_some(at_work, [row for row in rows if _is_usable(at_work, row)])
            seen += len(rows)
            at_work.progress("tasks", seen, total)


def _is_usable(at_work: _Bringing, row: Row) -> bool:
    name = text(row["id"], 200)
    if not name.strip():
        at_work.done.say("a task without an id was not brought in")
    elif name in at_work.ids:
        at_work.done.say(f"{name}: a second task of this id was not brought in")
    else:
        at_work.ids[name] = ""
        return True
    return False


def _bring_some(at_work: _Bringing, rows: Sequence[Row]) -> None:
    keys = [row["id"] for row in rows]
    cards = [card(row, at_work.board.extra) for row in rows]
    events = _by_task(at_work.board.of_tasks("task_events", keys, ("created", *sorted(BLOCKS))))
    comments = _by_task(at_work.board.of_tasks("task_comments", keys))
    for table in at_work.board.attached:
        _keep_attached(cards, table, _by_task(at_work.board.of_tasks(table, keys)))
    wanted = {each for one in cards for each in one.ids()}
    here = dict(Task.objects.filter(pk__in=wanted).values_list("pk", "created_at"))
    with at_work.writing():
        fresh = [one for one in cards if _settle_id(at_work, one, here)]
        _check_keys(at_work, fresh)
        for one in fresh:
            _explain(one, events[one.source])
            if one.notes:
                _say_notes(at_work, one)
        if at_work.apply:
            Task.objects.bulk_create(_made(at_work, one) for one in fresh)
        notes = [_comment(at_work, one.source, AUTHOR, note(one.notes), one.created_at) for one in fresh if one.notes]
        found = [each for one in cards for each in _said(at_work, one, comments[one.source])]
        missing = _missing(at_work, found)
        if at_work.apply:
            Comment.objects.bulk_create([*notes, *missing])
        for one in fresh:
            _tell_created(at_work, one, events[one.source])
    at_work.done.tasks += len(fresh)
    at_work.done.known += len(cards) - len(fresh)
    at_work.done.comments += len(missing)
    at_work.done.ready += sum(one.fields["status"] == Status.READY for one in fresh)


def _made(at_work: _Bringing, one: Card) -> Task:
    """Return the row of a task; one that waits for others is nobody's to start before its links are in."""
    return Task(id=at_work.ids[one.source], **(held(one.fields) if one.source in at_work.waiting else one.fields))


def _by_task(rows: Sequence[Row]) -> defaultdict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[text(row["task_id"], 200)].append(row)
    return found


def _keep_attached(cards: Sequence[Card], table: str, rows: defaultdict[str, list[Row]]) -> None:
    for one in cards:
        mine = rows[one.source]
        for row in mine[:ATTACHED_SHOWN]:
            kept = {text(key, 80): text(value, 500) for key, value in row.items() if value is not None}
            one.notes.append(f"{text(table, 80)}: {json.dumps(kept, ensure_ascii=False)[:2000]}")
        if len(mine) > ATTACHED_SHOWN:
            one.notes.append(f"{text(table, 80)}: {len(mine) - ATTACHED_SHOWN} more rows")


def _settle_id(at_work: _Bringing, one: Card, here: dict[str, datetime]) -> bool:
    """Find out under which id a task is here or will be; says whether it is to be made."""
    known = next((each for each in one.ids() if here.get(each) == one.created_at and each not in at_work.taken), None)
    mine = known or next(each for each in one.ids() if each not in here and each not in at_work.taken)
    at_work.ids[one.source] = mine
    at_work.taken.add(mine)
    if known is None and mine != one.source:
        at_work.done.mapped += 1
        at_work.done.say(f"{one.source}: this id is taken or of another shape; the task is {mine} here")
    return known is None


def _check_keys(at_work: _Bringing, fresh: Sequence[Card]) -> None:
    """Take idempotency keys away that a living task has already: they are unique here."""
    wanted = [one.fields["idempotency_key"] for one in fresh if one.fields["idempotency_key"]]
    rows = Task.objects.filter(idempotency_key__in=wanted).exclude(status=Status.ARCHIVED)
    at_work.keys.update(rows.values_list("idempotency_key", flat=True))
    for one in fresh:
        key = one.fields["idempotency_key"]
        if not key or one.fields["status"] == Status.ARCHIVED:
            continue
        if key in at_work.keys:
            one.fields["idempotency_key"] = ""
            one.notes.append(f"Its idempotency key was {key}, which another task has.")
        at_work.keys.add(key)


def _explain(one: Card, events: Sequence[Row]) -> None:
    """Say why a blocked task is blocked, and since when, as far as its events tell."""
    if one.fields["status"] != Status.BLOCKED:
        return
    last = next((row for row in reversed(events) if row.get("kind") in BLOCKS), None)
    if last is None:
        return
    told = payload(last.get("payload"))
    one.fields["block_reason"] = text(told.get("reason") or told.get("error"), 2000)
    one.fields["since"] = moment(last.get("created_at")) or one.fields["since"]
    if last["kind"] in BREAKS:
        one.fields["block_kind"] = BlockKind.BREAKER


def _say_notes(at_work: _Bringing, one: Card) -> None:
    for line in one.notes[:5]:
        at_work.done.say(f"{one.source}: {line[:200]}")


def _comment(at_work: _Bringing, source: str, author: str, body: str, at: datetime) -> Comment:
    return Comment(task_id=at_work.ids[source], author=author, body=body, created_at=at)


def _said(at_work: _Bringing, one: Card, rows: Sequence[Row]) -> Iterator[Comment]:
    for row in rows:
        body = text(row.get("body")).strip()
        if not body:
            at_work.done.say(f"{one.source}: a comment without text was not brought in")
            continue
        author = text(row.get("author"), 200).strip() or "unknown"
        yield _comment(at_work, one.source, author, body, moment(row.get("created_at")) or one.created_at)


def _missing(at_work: _Bringing, found: Sequence[Comment]) -> list[Comment]:
    """Return the comments that are not here yet; what was said twice is there twice."""
    rows = Comment.objects.filter(task__in={each.task_id for each in found}).exclude(
        author=AUTHOR, body__startswith=NOTE_BEGINS
    )
    here = Counter(rows.values_list("task_id", "author", "body", "created_at"))
    missing = []
    for each in found:
        what = (each.task_id, each.author, each.body, each.created_at)
        if here[what]:
            here[what] -= 1
        else:
            missing.append(each)
    return missing


def _tell_created(at_work: _Bringing, one: Card, events: Sequence[Row]) -> None:
    first = next((row for row in events if row.get("kind") == "created" and isinstance(row.get("id"), int)), None)
    fields: dict[str, Any] = {"assignee": one.fields["assignee"] or None, "status": str(one.fields["status"])}
    fields |= payload(first.get("payload")) if first else {}
    at = (moment(first.get("created_at")) if first else None) or one.created_at
    subject, number = f"task:{at_work.ids[one.source]}", first["id"] if first else 0
    at_work.told.add((subject, number))
    if at_work.apply:
        record("task.created", subject, by=at_work.by, now=at, **fields, imported=True, source=number)


def _bring_links(at_work: _Bringing) -> None:
    total, seen = at_work.board.count("task_links"), 0
    for batch in at_work.board.links():
        pairs = []
        for row in batch:
            parent, child = text(row["parent_id"], 200), text(row["child_id"], 200)
            if at_work.ids.get(parent) and at_work.ids.get(child):
                pairs.append((at_work.ids[parent], at_work.ids[child]))
            else:
                at_work.done.say(f"link {parent} -> {child}: one of the tasks is not there")
        with at_work.writing():
            made, refused = weave(pairs, apply=at_work.apply)
        at_work.done.links += made
        for parent, child in refused:
            at_work.done.say(f"link {parent} -> {child}: it leads back to itself and was not brought in")
        seen += len(batch)
        at_work.progress("links", seen, total)


def _bring_events(at_work: _Bringing) -> None:
    total, seen, strange = at_work.board.count("task_events"), 0, Counter[str]()
    for batch in at_work.board.events():
        rows = []
        for row in batch:
            task_id = at_work.ids.get(text(row.get("task_id"), 200), "")
            kind = text(row["kind"], 80)
            if not task_id:
                strange["of tasks that are not there"] += 1
            elif not isinstance(row["id"], int) or not KIND.fullmatch(kind):
                strange["whose id or kind cannot be read"] += 1
            else:
                rows.append((row["id"], task_id, kind, row))
        here, unknown = _here(rows) if rows else set(), ""
        with at_work.writing():
            for number, task_id, kind, row in rows:
                subject = f"task:{task_id}"
                if (subject, number) in here or (subject, number) in at_work.told:
                    continue
                at_work.done.events += 1
                unknown = unknown if kind in KINDS else subject
                if at_work.apply:
                    at, fields = moment(row.get("created_at")) or UNKNOWN_TIME, payload(row.get("payload"))
                    record(f"task.{kind}", subject, by=at_work.by, now=at, **fields, imported=True, source=number)
            if unknown and at_work.apply:
                # The board's cursor looks for kinds that it knows: one of them comes after those that it does not.
                record("task.imported", unknown, by=at_work.by, now=at_work.now, imported=True)
        seen += len(batch)
        at_work.progress("events", seen, total)
    for why, count in strange.items():
        at_work.done.say(f"{count} events {why} were not brought in")


def _here(rows: Sequence[tuple[int, str, str, Row]]) -> set[tuple[str, int]]:
    """Return which of these events are in the log already."""
    numbers = [number for number, *_ in rows]
    found = Event.objects.filter(
        subject__in={f"task:{task_id}" for _, task_id, *_ in rows},
        payload__imported=True,
        payload__source__gte=min(numbers),
        payload__source__lte=max(numbers),
    )
    return set(found.values_list("subject", "payload__source"))
