"""REST of the clean-up: the same rules and refusals as on the page."""

from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from kanban import cleaning, lifecycle
from kanban.models import CleanUp
from services import orders
from services.models import WorkerHost
from tests.kanban import rows
from tests.kanban.closed import LONG_AGO, worked_on
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db
PATH = "/api/system/clean-up"


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does at once what it is told."""
    monkeypatch.setattr(orders, "send", lambda job, node, pk: cleaning.carry_out(pk))
    monkeypatch.setattr(cleaning, "ENDED_WITHIN_S", 0.0)


def test_the_dry_run(client_of, home: Path) -> None:
    run = worked_on(home)
    body = client_of("operator").get(PATH).json()
    [place] = body["workspaces"]
    assert place["task"] == run.task_id
    assert place["paths"] == [f"workspaces/{run.task_id}"]
    assert place["closed_at"] == LONG_AGO.isoformat().replace("+00:00", "Z") or place["closed_at"].endswith("+00:00")
    assert body["size_bytes"] == place["size_bytes"] + body["runs"][0]["size_bytes"]
    assert (body["measured"], body["total"]["workspaces"], body["kept"]["open"]) == (True, 1, 0)
    assert (home / "workspaces" / run.task_id).exists()


def test_it_is_done_once_asked_for(client_of, home: Path) -> None:
    run = worked_on(home)
    rows.tick()
    answer = client_of("admin").post(PATH)
    [told] = answer.json()["clean_ups"]
    assert answer.status_code == 200
    assert (told["host"], told["removed"]["workspaces"], told["failed"]) == (settings.ANDON_NODE, 1, [])
    assert told["asked_by"].startswith("token:")
    assert not (home / "workspaces" / run.task_id).exists()


def test_one_that_is_not_done_in_time_is_told_as_it_is_and_not_begun_again(client_of, home, monkeypatch) -> None:
    rows.tick()
    monkeypatch.setattr(orders, "send", lambda job, node, pk: None)
    client = client_of("admin")
    first, second = client.post(PATH), client.post(PATH)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert first.json()["clean_ups"][0]["ended_at"] is None
    assert CleanUp.objects.count() == 1


def test_no_worker(client_of, home: Path) -> None:
    run = worked_on(home)
    WorkerHost.objects.all().delete()
    answer = client_of("admin").post(PATH)
    assert (answer.status_code, answer.json()["error"]) == (503, "no-worker")
    assert not CleanUp.objects.exists()
    assert (home / "workspaces" / run.task_id).exists()


@pytest.mark.parametrize(("role", "get", "post"), [("viewer", 403, 403), ("operator", 200, 403), ("admin", 200, 200)])
def test_who_may(client_of, home: Path, role: str, get: int, post: int) -> None:
    rows.tick()
    client = client_of(role)
    assert (client.get(PATH).status_code, client.post(PATH).status_code) == (get, post)
    assert CleanUp.objects.exists() == (post == 200)


def test_not_for_a_token_of_one_project_or_a_run(client_of, imported, home: Path) -> None:
    imported("demo")
    rows.tick()
    client = client_of("admin", project="demo")
    for answer in (client.get(PATH), client.post(PATH)):
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert not CleanUp.objects.exists()


def test_a_task_that_was_opened_between_look_and_order_stays(client_of, home: Path) -> None:
    run = worked_on(home)
    rows.tick()
    client = client_of("admin")
    assert client.get(PATH).json()["total"]["workspaces"] == 1
    lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
    assert "workspaces" not in client.post(PATH).json()["clean_ups"][0]["removed"]
    assert (home / "workspaces" / run.task_id / "report.md").exists()
