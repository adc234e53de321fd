"""A turn whose stream bears the name of a living process is nobody's to end."""

import os
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.utils import timezone

from config.queries import live_streams
from kanban import lifecycle
from projects import journal, keeping
from projects.events import SWEEP
from tests.kanban import rows as kanban
from tests.services import rows

pytestmark = pytest.mark.django_db


def test_living_processes_are_known_by_their_names(imported):
    project = imported("demo")
    rows.tick()
    rows.healthy(project, "web", wi="w-1")
    rows.failed(project, "gone")
    assert live_streams() == {"web", "demo/web", "w-1"}
    assert {name for known in keeping.live_streams for name in known()} >= {"demo/web"}
    root = Path(configured.ANDON_JOURNAL_ROOTS[0])
    for stream in ("demo/web", "demo/gone"):
        event = {"event": "submitted", "turn_id": stream, "stream_id": stream, "created_at": 1e9}
        journal.append_event(root, "s", event)
    os.utime(journal.path_of(root, "s"), (1e9, 1e9))
    assert keeping.recover(by=SWEEP, now=timezone.now())["added"] == 1
    states = journal.derive_states(journal.read_journal(root, "s").events).turns
    assert [turn["effective_state"] for turn in states] == ["submitted", "interrupted"]


def test_a_run_of_a_task_names_its_streams_while_it_lives():
    run = kanban.pulled()
    assert live_streams() == {run.task_id, f"{run.task_id}/1", f"{run.task_id}-1"}
    lifecycle.release(run.task, by=kanban.ANNA, now=timezone.now())
    assert live_streams() == set()
