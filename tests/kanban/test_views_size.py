"""What the board weighs with 500 cards, and how long the server takes over it."""

import gzip
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.utils import timezone

from kanban.models import Comment, Link, Task
from kanban.states import BlockKind
from tests.kanban import rows

pytestmark = pytest.mark.django_db
ASSET = re.compile(r'(?:src|href)="/static/([^"]+\.(?:js|css))"')
STATUSES = ("triage", "todo", "ready", "blocked", "done")


@pytest.fixture
def full(db: None) -> None:
    """500 cards in five columns, a third of them with marks."""
    rows.tick()
    now = timezone.now()
    tasks = [
        Task(
            id=f"t_{number * 2654435761 % 2**32:08x}",
            title=f"Card {number}: " + " ".join(f"word{number * k % 97}" for k in range(1, 7)),
            status=STATUSES[number % 5],
            block_kind=BlockKind.NEEDS_INPUT if STATUSES[number % 5] == "blocked" else "",
            block_reason=f"Which of the {number} doors?" if STATUSES[number % 5] == "blocked" else "",
            assignee=("demo", "anna", "")[number % 3],
            tenant=("", "garden")[number % 2],
            priority=number % 7,
            created_at=now - timedelta(minutes=number),
            since=now - timedelta(minutes=number),
            active_at=now,
        )
        for number in range(500)
    ]
    Task.objects.bulk_create(tasks)
    Link.objects.bulk_create(Link(parent=tasks[n], child=tasks[n + 1]) for n in range(0, 480, 3))
    Comment.objects.bulk_create(
        Comment(task=tasks[n], author="anna", body="x", created_at=now) for n in range(0, 500, 3)
    )


def zipped(content: bytes) -> int:
    return len(gzip.compress(content, 6))


def test_the_first_view_with_its_assets_is_within_its_budget(sign_in, full, django_assert_max_num_queries):
    client = sign_in()
    with django_assert_max_num_queries(12):
        answer = client.get("/kanban/")
    text = answer.content.decode()
    assert text.count('data-task="') == 500
    weights = {name: zipped(Path(finders.find(name)).read_bytes()) for name in ASSET.findall(text)}
    scripts = sum(weight for name, weight in weights.items() if name.endswith(".js"))
    signs = zipped(Path(finders.find("img/status.svg")).read_bytes())
    whole = zipped(answer.content) + sum(weights.values()) + signs
    assert {"js/board.js", "js/live.js"} < set(weights)
    assert scripts <= 45_000
    assert whole <= 120_000, (whole, zipped(answer.content), weights)


def test_one_columns_fragment_is_a_fifth_of_it(sign_in, full):
    client = sign_in()
    headers = {"HX-Request": "true", "HX-Target": "column-ready"}
    answer = client.get("/kanban/", headers=headers)
    assert answer.content.decode().count('data-task="') == 100
    assert zipped(answer.content) <= 15_000
