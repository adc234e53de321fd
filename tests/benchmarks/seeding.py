"""A big board for the benchmarks, written below the verbs: 10,000 tasks would take minutes through them.

`python -m tests.benchmarks.seeding [N]` fills the database of the settings with each Nth of them, 1 by default.
"""

import itertools
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

STATUSES = {"triage": 500, "todo": 2500, "ready": 1000, "running": 0, "blocked": 1000, "done": 5000}
LINKS, EVENTS, COMMENTS = 10_000, 30_000, 5_000
KINDS = ("task.created", "task.claimed", "task.spawned", "task.heartbeat", "task.commented", "task.completed")


def name(number: int) -> str:
    return f"t_{number:08x}"


def tasks(now: datetime) -> Iterator[dict[str, object]]:
    """Yield 10,000 tasks as plain values, the same at each run; about 1 kB each as JSON."""
    dice = random.Random(7)
    numbers = itertools.count(1)
    for status, count in STATUSES.items():
        for _ in range(count):
            number = next(numbers)
            created = now - timedelta(seconds=dice.randrange(30 * 86_400))
            closed = status == "done"
            yield {
                "id": name(number),
                "title": f"Task {number}: {'look into the flaky test ' * dice.randrange(1, 3)}".strip(),
                "body": "Say what is wrong and mend it.",
                "assignee": dice.choice(["", "demo", "claude", "codex", "anna"]) if status != "ready" else "demo",
                "status": status,
                "priority": dice.randrange(5),
                "tenant": dice.choice(["", "north", "south"]),
                "created_by": "user:anna",
                "created_at": created,
                "started_at": created + timedelta(hours=1) if closed else None,
                "completed_at": created + timedelta(hours=2) if closed else None,
                "result": "It is mended." if closed else "",
            }


def pairs() -> list[tuple[int, int]]:
    """Return 10,000 different links as numbers of tasks, the parent before the child; none of a ready task."""
    dice = random.Random(11)
    ready = range(3001, 4001)
    found: set[tuple[int, int]] = set()
    while len(found) < LINKS:
        parent, child = sorted(dice.sample(range(1, 10_001), 2))
        if child not in ready:
            found.add((parent, child))
    return sorted(found)


def events() -> Iterator[tuple[str, str]]:
    """Yield 30,000 events as (task, kind)."""
    for number in range(EVENTS):
        yield name(number % 10_000 + 1), KINDS[number % len(KINDS)]


def commented() -> Iterator[str]:
    """Yield the task of each of 5,000 comments."""
    for number in range(COMMENTS):
        yield name(2 * number + 1)


def fill(each: int) -> None:
    """Write each so manieth task into Andon's own tables; what is in todo is held there, so that no sweep moves it."""
    import django

    django.setup()
    from django.db import transaction
    from django.utils import timezone

    from kanban.models import Comment, Link, Task
    from projects.models import Event

    now = timezone.now()
    kept = [row for number, row in enumerate(tasks(now)) if number % each == 0]
    known = {row["id"] for row in kept}
    with transaction.atomic():
        rows = [
            Task(
                **row,
                since=row["created_at"],
                active_at=row["created_at"],
                held=row["status"] == "todo",
                block_kind="needs_input" if row["status"] == "blocked" else "",
            )
            for row in kept
        ]
        Task.objects.bulk_create(rows, batch_size=500)
        named = [(name(parent), name(child)) for parent, child in pairs()]
        links = [Link(parent_id=pair[0], child_id=pair[1]) for pair in named if known.issuperset(pair)]
        Link.objects.bulk_create(links, batch_size=500)
        told = [
            Event(at=now, kind=kind, subject=f"task:{task}", payload={"via": "api"})
            for task, kind in events()
            if task in known
        ]
        Event.objects.bulk_create(told, batch_size=500)
        remarks = [
            Comment(task_id=task, author="anna", body="Look again, please.", created_at=now)
            for task in commented()
            if task in known
        ]
        Comment.objects.bulk_create(remarks, batch_size=500)


if __name__ == "__main__":
    fill(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
