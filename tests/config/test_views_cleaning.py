"""/system/'s clean-up: who sees and may what, what it says, and that looking removes nothing."""

from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone

from kanban import cleaning, lifecycle, retention
from kanban.models import CleanUp
from services import orders
from services.models import WorkerHost
from tests.kanban import rows
from tests.kanban.closed import worked_on
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db
PATH = "/system/clean-up/"


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does at once what it is told."""
    monkeypatch.setattr(orders, "tell", lambda rows: None)
    monkeypatch.setattr(orders, "send", lambda job, node, pk: cleaning.carry_out(pk))
    monkeypatch.setattr(cleaning, "ENDED_WITHIN_S", 0.0)
    monkeypatch.setattr(lifecycle.moves, "on_free", [])
    monkeypatch.setattr(lifecycle.ending, "on_left", [])


def text(client: Client, path: str = PATH, **about) -> str:
    answer = client.get(path, **about)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_panel_says_what_is_kept_and_the_last_that_was_done(sign_in, home: Path) -> None:
    worked_on(home)
    rows.tick()
    client = sign_in("admin")
    before = text(client, "/system/")
    assert f'href="{PATH}"' in before
    for part in ("90 days, at most 2,000,000", "30 days, and as long as a child is open"):
        assert part in before
    answer = client.post(PATH, follow=True)
    assert "1 workspace, 1 process that had ended" in answer.content.decode()
    row = CleanUp.objects.get()
    assert row.asked_by in text(client, "/system/", headers={"HX-Request": "true", "HX-Target": "cleanup"})


@pytest.mark.parametrize(("role", "get", "post"), [("viewer", 403, 403), ("operator", 200, 403), ("admin", 200, 302)])
def test_who_may(sign_in, home: Path, role: str, get: int, post: int) -> None:
    run = worked_on(home)
    rows.tick()
    client = sign_in(role)
    assert (f'href="{PATH}"' in text(client, "/system/")) == (role != "viewer")
    assert client.get(PATH).status_code == get
    assert client.post(PATH).status_code == post
    assert (home / "workspaces" / run.task_id).exists() == (post == 403)
    assert CleanUp.objects.exists() == (post == 302)


def test_only_an_administrator_has_the_button(sign_in, home: Path) -> None:
    worked_on(home)
    told = text(sign_in("operator"))
    assert "Only an administrator" in told
    assert "Clean up now</button>" not in told
    assert "Clean up now</button>" in text(sign_in("admin"))


def test_the_dry_run_shows_and_removes_nothing(sign_in, home: Path) -> None:
    run = worked_on(home, title="<script>alert(1)</script>\u202e")
    before = rows.everything()
    told = text(sign_in("admin"))
    for part in (f"workspaces/{run.task_id}", f"agents/{run.agent}", "dry run", "&lt;script&gt;"):
        assert part in told
    assert "<script>alert" not in told
    assert "\u202e" not in told
    assert rows.everything() == before
    assert (home / "workspaces" / run.task_id / "report.md").exists()


def test_as_a_fragment_it_has_what_the_dialog_looks_for(sign_in, home: Path) -> None:
    told = text(sign_in("admin"), headers={"HX-Request": "true", "HX-Target": "confirm"})
    assert 'id="confirm"' in told
    assert "data-cancel" in told


def test_nothing_to_go(sign_in, home: Path) -> None:
    told = text(sign_in("admin"))
    assert "Nothing is to be removed now." in told
    assert "Clean up now</button>" not in told


def test_no_worker(sign_in, home: Path) -> None:
    run = worked_on(home)
    WorkerHost.objects.all().delete()
    answer = sign_in("admin").post(PATH, follow=True)
    assert answer.redirect_chain[0][0] == "/system/"
    assert "No worker ticks anywhere" in answer.content.decode()
    assert not CleanUp.objects.exists()
    assert (home / "workspaces" / run.task_id).exists()


def test_a_script_hears_503_without_a_worker(sign_in, home: Path) -> None:
    WorkerHost.objects.all().delete()
    assert sign_in("admin").post(PATH, headers={"HX-Request": "true"}).status_code == 503


def test_a_task_that_was_opened_since_the_preview_stays(sign_in, home: Path) -> None:
    run = worked_on(home)
    rows.tick()
    client = sign_in("admin")
    assert run.task_id in text(client)
    lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
    client.post(PATH)
    assert (home / "workspaces" / run.task_id / "report.md").exists()


def test_twice_is_no_fault(sign_in, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.tick()
    monkeypatch.setattr(orders, "send", lambda job, node, pk: None)
    client = sign_in("admin")
    for _ in range(2):
        assert "is being cleaned up" in client.post(PATH, follow=True).content.decode()
    assert CleanUp.objects.count() == 1
    assert 'data-status="applying"' in text(client, "/system/")


def test_many_are_bounded_and_cost_the_same(sign_in, home: Path, django_assert_max_num_queries) -> None:
    for _ in range(55):
        worked_on(home)
    client = sign_in("admin")
    with django_assert_max_num_queries(12):
        told = text(client)
    assert told.count('<td class="nowrap">') == 100
    assert "… and 5 more" in told


def test_what_failed_and_what_is_left_is_said(sign_in, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_on(home)
    rows.tick()

    def refuse(**_) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(retention, "prune_workspaces", refuse)
    client = sign_in("admin")
    client.post(PATH)
    assert "not all of workspaces" in text(client, "/system/")
    CleanUp.objects.update(left=True)
    assert "the rest goes by itself" in text(client, "/system/")


def test_an_intent_needs_a_token_of_the_form(make_user, home: Path) -> None:
    rows.tick()
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user("anna", "admin"))
    assert client.post(PATH).status_code == 403
    assert not CleanUp.objects.exists()
