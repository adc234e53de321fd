"""The board over REST: its document, its validator, its numbers, a pass of its dispatcher."""

import gzip
import re
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from django.utils import timezone

from config.environment import Board
from kanban import dispatch, lifecycle, queries, sweeps
from kanban.api import board as module
from kanban.models import Profile, Run, Task
from kanban.queries import KINDS
from kanban.schemas import BoardOut, DispatchOut, StatsOut
from kanban.states import Status
from projects.events import SWEEP, record, writing
from projects.models import Event
from services import lifecycle as services
from tests.kanban import rows
from tests.kanban.asking import refused

ORDER = ["triage", "todo", "ready", "running", "blocked", "done"]


def cards_of(board: dict) -> dict[str, list[dict]]:
    return {column["name"]: column["tasks"] for column in board["columns"]}


def test_an_empty_board_has_its_columns(ask):
    found = ask().get("/board").json()
    assert [column["name"] for column in found["columns"]] == ORDER
    assert (found["tenants"], found["assignees"], found["latest_event_id"]) == ([], [], 0)
    assert abs(found["now"] - timezone.now().timestamp()) < 5


def test_a_real_board_is_as_documented(ask):
    for status in Status:
        rows.in_status(status)
    found = ask().get("/board?include_archived=true").json()
    BoardOut.model_validate(found)
    assert [column["name"] for column in found["columns"]] == [str(status) for status in Status]
    assert found["latest_event_id"] == Event.objects.filter(kind__startswith="task.").latest("id").pk
    for cards in cards_of(found).values():
        for card in cards:
            beside = {key: card.pop(key) for key in ("age", "link_counts", "comment_count", "progress")}
            assert card == queries.read_document(card["id"])
            assert set(beside["age"]) == {"created_age_seconds", "started_age_seconds", "time_to_complete_seconds"}


def test_review_is_a_column_only_when_something_is_in_it_and_the_archived_only_when_asked_for(ask):
    rows.in_status("archived")
    asker = ask()
    assert [column["name"] for column in asker.get("/board").json()["columns"]] == ORDER
    rows.in_status("review")
    names = [column["name"] for column in asker.get("/board?include_archived=true").json()["columns"]]
    assert names == [*ORDER[:4], "review", *ORDER[4:], "archived"]


def test_cards_stand_by_priority_then_age(ask):
    now = timezone.now()
    old = rows.task("old", now=now - timedelta(hours=2))
    new = rows.task("new", now=now)
    first = rows.task("first", priority=5, now=now)
    last = rows.task("last", priority=-1, now=now - timedelta(days=1))
    found = cards_of(ask().get("/board").json())["ready"]
    assert [card["id"] for card in found] == [first.pk, old.pk, new.pk, last.pk]


def test_a_limit_is_for_each_column(ask):
    for status in ("ready", "done"):
        for _ in range(3):
            rows.in_status(status)
    found = cards_of(ask().get("/board?limit=2").json())
    assert {name: len(cards) for name, cards in found.items() if cards} == {"ready": 2, "done": 2}


def test_what_stands_beside_a_task(ask):
    now = timezone.now()
    parent = rows.task(now=now - timedelta(seconds=100))
    children = [rows.task(parents=[parent.pk]) for _ in range(3)]
    lifecycle.archive(children[0], by=rows.ANNA, now=now)
    lifecycle.comment(parent, "x", author="a", by=rows.ANNA, now=now)
    asker = ask()

    def card() -> dict:
        return next(c for cards in cards_of(asker.get("/board").json()).values() for c in cards if c["id"] == parent.pk)

    found = card()
    assert found["link_counts"] == {"parents": 0, "children": 3}
    assert found["comment_count"] == 1
    assert found["progress"] == {"done": 0, "total": 3}
    assert 100 <= found["age"]["created_age_seconds"] < 120
    assert (found["age"]["started_age_seconds"], found["age"]["time_to_complete_seconds"]) == (None, None)
    lifecycle.complete(parent, by=rows.ANNA, now=now)
    lifecycle.complete(rows.fresh(children[1]), by=rows.ANNA, now=now)
    found = card()
    assert found["progress"] == {"done": 1, "total": 3}
    assert found["age"]["time_to_complete_seconds"] == 100
    below = next(c for c in cards_of(asker.get("/board").json())["ready"] if c["id"] == children[2].pk)
    assert (below["link_counts"], below["progress"]) == ({"parents": 1, "children": 0}, None)


def test_tenants_and_projects_choose(ask, imported):
    imported("demo")
    one = rows.task(tenant="north", assignee="anna")
    two = rows.task(project="demo", tenant="south")
    rows.in_status("archived", tenant="gone", assignee="gone")
    asker = ask()

    def ids(query: str) -> set[str]:
        return {card["id"] for cards in cards_of(asker.get(f"/board{query}").json()).values() for card in cards}

    assert ids("") == {one.pk, two.pk}
    assert ids("?tenant=north") == {one.pk}
    assert ids("?project=demo") == {two.pk}
    assert ids("?project=demo&tenant=north") == set()
    assert ids("?tenant=%00") == {one.pk, two.pk}
    assert ids("?project=no'thing") == set()
    found = asker.get("/board?tenant=north").json()
    assert (found["tenants"], found["assignees"]) == (["north", "south"], ["anna", "demo"])
    assert asker.get("/board?include_archived=1").json()["tenants"] == ["gone", "north", "south"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=-1", "limit=10001", "include_archived=perhaps", f"tenant={'x' * 81}"]
)
def test_nonsense_is_refused(ask, query):
    refused(ask().get(f"/board?{query}"), 422, "invalid-request")


def test_a_board_takes_as_many_queries_however_many_tasks_there_are(ask, django_assert_num_queries):
    asker = ask()
    asker.get("/board")
    for times in range(2):
        for status in Status:
            rows.in_status(status)
        assert Task.objects.count() >= 8 * (times + 1)
        for query in ("", "?limit=1", "?include_archived=true&tenant=x&project=y"):
            # The token, the cursor, the cards, the menus.
            with django_assert_num_queries(4):
                assert asker.get(f"/board{query}").status_code == 200


def test_an_unchanged_board_is_not_sent_again(ask, django_assert_num_queries):
    asker = ask()
    rows.task()
    first = asker.get("/board")
    etag = first["ETag"]
    assert re.fullmatch(rf'W/"{first.json()["latest_event_id"]}-[0-9a-f]+"', etag)
    with django_assert_num_queries(2):
        again = asker.get("/board", **{"If-None-Match": etag})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", etag)
    with writing():
        record("service.crashed", "service:x", by=SWEEP, now=timezone.now())
    assert asker.get("/board", **{"If-None-Match": f'"x", {etag}'}).status_code == 304
    rows.task()
    assert asker.get("/board", **{"If-None-Match": etag}).status_code == 200


def test_a_validator_knows_what_was_asked_for_and_what_may_be_seen(ask, imported):
    imported("demo")
    rows.task()
    asker = ask()
    queries_ = ["", "?limit=1", "?tenant=a", "?project=a", "?include_archived=true", "?tenant=b"]
    tags = {asker.get(f"/board{query}")["ETag"] for query in queries_}
    tags.add(ask("viewer", project="demo").get("/board")["ETag"])
    assert len(tags) == len(queries_) + 1
    assert ask("viewer").get("/board")["ETag"] == asker.get("/board")["ETag"]


def test_a_large_board_is_compressed_for_who_can_read_that(ask):
    for _ in range(20):
        rows.task(body="x" * 1000)
    asker = ask()
    plain = asker.get("/board")
    packed = asker.get("/board", **{"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed["Content-Encoding"] == "gzip"
    assert packed["ETag"] == plain["ETag"]
    assert "Accept-Encoding" in packed["Vary"]
    ids = [[card["id"] for card in cards] for cards in cards_of(plain.json()).values()]
    unpacked = orjson.loads(gzip.decompress(packed.content))
    assert [[card["id"] for card in cards] for cards in cards_of(unpacked).values()] == ids


def test_a_large_body_serves_all_who_ask_within_two_seconds(ask, monkeypatch, django_assert_num_queries):
    recent = module.Recent()
    monkeypatch.setattr(module, "_recent", recent)
    monkeypatch.setattr(module, "KEPT_FROM", 1000)
    made = rows.task()
    asker, bound = ask(), ask("viewer", project="demo")
    first = asker.get("/board")
    with django_assert_num_queries(2):
        assert asker.get("/board").content == first.content
    # Who may see less, or asks for something else, has a validator of his own.
    assert all(not column["tasks"] for column in bound.get("/board").json()["columns"])
    assert asker.get("/board?tenant=x").content != first.content
    # What one has changed he sees at once.
    asker.patch(f"/tasks/{made.pk}", {"title": "Changed"})
    assert "Changed" in asker.get("/board").content.decode()
    monkeypatch.setattr(module, "KEPT_S", 0.0)
    with django_assert_num_queries(4):
        asker.get("/board")
    for number in range(10):
        recent.keep(f"x{number}", b"x" * 1000)
    assert len(recent._bodies) == module.MOST_KEPT


def test_every_kind_that_a_verb_tells_is_known():
    told: set[str] = set()
    for path in [*Path("kanban/lifecycle").glob("*.py"), *Path("kanban").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        told |= set(re.findall(r'tell\(\s*[\w.]+,\s*"(\w+)"', text))
        told |= set(re.findall(r'record\(\s*"task\.(\w+)"', text))
        told |= {word for pair in re.findall(r'"(\w+)" if [^\n]+ else "(\w+)"', text) for word in pair if word in KINDS}
    assert told >= {"created", "claimed", "spawn_failed", "spawn_auto_blocked", "completed", "forced"}
    assert told <= set(KINDS)


def test_the_cursor_is_found_by_seeks_alone(ask, db, django_assert_num_queries):
    rows.task()
    last = Event.objects.latest("id").pk
    with writing():
        for _ in range(20):
            record("loop.stopped", "loop:x", by=SWEEP, now=timezone.now())
    with django_assert_num_queries(1):
        assert queries.latest_event_id() == last


# Numbers


def test_config_is_what_the_settings_say(ask, settings):
    settings.ANDON_BOARD = Board("north", lane_by_profile=False, include_archived=True, render_markdown=False)
    assert ask("viewer").get("/config").json() == {
        "default_tenant": "north",
        "lane_by_profile": False,
        "include_archived_by_default": True,
        "render_markdown": False,
    }


def test_stats_count_what_is_not_archived(ask, django_assert_num_queries):
    now = timezone.now()
    rows.task(now=now - timedelta(seconds=90))
    rows.task(assignee="", now=now)
    rows.in_status("archived")
    rows.in_status("running")
    rows.blocked("breaker")
    lifecycle.pause(Profile.objects.get(name="claude"), reason="no", by=rows.ANNA, now=now)
    asker = ask("viewer")
    asker.get("/config")
    with django_assert_num_queries(9):
        found = asker.get("/stats").json()
    StatsOut.model_validate(found)
    assert found["by_status"] == {"ready": 2, "running": 1, "blocked": 1}
    assert found["by_assignee"] == {"demo": {"ready": 1, "running": 1, "blocked": 1}}
    assert 90 <= found["oldest_ready_age_seconds"] < 120
    profiles = {each["name"]: each for each in found["profiles"]}
    assert (profiles["demo"]["can_spawn"], profiles["demo"]["live"]) == (True, 1)
    assert (profiles["claude"]["paused"], profiles["claude"]["can_spawn"]) == (True, False)
    assert found["breaker"] == 1
    assert (found["dispatch_paused"], found["last_pass"]) == (False, None)
    assert isinstance(found["last_tick"], int)


def test_stats_of_nothing(ask):
    found = ask().get("/stats").json()
    assert (found["by_status"], found["oldest_ready_age_seconds"], found["last_tick"]) == ({}, None, None)


# A pass


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(module, "SPAWNED_WITHIN_S", 0.1)
    rows.profile(concurrency=50)


def served(monkeypatch, act) -> None:
    """Have what a pass tells the hosts done at once."""
    monkeypatch.setattr(dispatch, "tell", lambda runs: [act(run) for run in runs])


def test_a_pass_starts_workers(ask, quick, monkeypatch):
    rows.tick()
    served(monkeypatch, rows.spawned)
    first, second, free = rows.task(priority=1), rows.task(), rows.task(assignee="")
    away = rows.task(assignee="codex")
    found = ask().post("/dispatch?max=1").json()
    DispatchOut.model_validate(found)
    assert [each[:2] for each in found["spawned"]] == [[first.pk, "demo"]]
    assert found["spawned"][0][2].endswith(f"workspaces/{first.pk}")
    assert (found["skipped_unassigned"], found["skipped_nonspawnable"]) == ([free.pk], [away.pk])
    assert (found["reclaimed"], found["promoted"], found["crashed"], found["auto_blocked"]) == (0, 0, [], [])
    assert [each[0] for each in ask().post("/dispatch").json()["spawned"]] == [second.pk]


def test_whose_worker_could_not_be_started_is_told_of(ask, quick, monkeypatch):
    rows.tick()
    served(monkeypatch, rows.not_started)
    again, never = rows.task(), rows.task(failure_limit=1)
    found = ask().post("/dispatch").json()
    assert found["spawned"] == []
    assert found["spawn_failed"] == sorted([again.pk, never.pk])
    assert found["auto_blocked"] == [never.pk]
    assert rows.fresh(again).last_error == "no such program"


def test_a_pass_is_answered_in_time_whatever_a_worker_does(ask, quick, monkeypatch):
    rows.tick()
    served(monkeypatch, lambda run: None)
    made = rows.task()
    assert [each[0] for each in ask().post("/dispatch").json()["spawned"]] == [made.pk]


def test_without_a_worker_nothing_is_changed(ask, quick):
    made = rows.task()
    refused(ask().post("/dispatch"), 503, "no-worker")
    rows.tick(timezone.now() - timedelta(seconds=60))
    refused(ask().post("/dispatch"), 503, "no-worker")
    assert rows.fresh(made).status == Status.READY


def test_a_dry_run_changes_nothing_and_needs_no_worker(ask, quick):
    rows.task()
    late = rows.task(now=timezone.now() - timedelta(seconds=2000))
    lifecycle.claim(late, by=rows.AGENT, now=timezone.now() - timedelta(seconds=1500))
    before = list(Task.objects.order_by("pk").values()), Event.objects.filter(kind__startswith="task.").count()
    assert ask().post("/dispatch?dry_run=true").json()["spawned"] == []
    rows.tick()
    found = ask().post("/dispatch?dry_run=true").json()
    assert (len(found["spawned"]), found["reclaimed"], found["dry_run"]) == (1, 1, True)
    assert ask().post("/dispatch?dry_run=true&max=0").json()["spawned"] == []
    assert before == (
        list(Task.objects.order_by("pk").values()),
        Event.objects.filter(kind__startswith="task.").count(),
    )
    assert not Run.objects.filter(has_process=True).exists()


def test_what_a_pass_found_crashed_is_told(ask, quick, monkeypatch):
    served(monkeypatch, rows.spawned)
    run = rows.started()
    services.ended(rows.process_of(run), 3, members=[], tail="boom", jitter=0.0, by=SWEEP, now=timezone.now())
    monkeypatch.setattr(sweeps, "detect_crashed", lambda now: [run.task_id])
    assert ask().post("/dispatch").json()["crashed"] == [run.task_id]


@pytest.mark.parametrize("query", ["max=-1", "max=501", "max=x", "dry_run=perhaps"])
def test_nonsense_asked_of_a_pass_is_refused(ask, query):
    refused(ask().post(f"/dispatch?{query}"), 422, "invalid-request")


def test_a_token_of_one_project_runs_no_pass(ask, imported):
    imported("demo")
    rows.tick()
    refused(ask(project="demo").post("/dispatch"), 403, "forbidden")
