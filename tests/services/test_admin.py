"""The repair bench of what runs: through verbs, without values of environments, and a force that is recorded."""

import pytest
from django.utils import timezone

from projects.errors import Conflict
from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle
from services.models import ManagedProcess, WorkerHost
from tests.services.rows import failed, healthy, launched, make_spec, play_worker, tick

pytestmark = pytest.mark.django_db
PATH = "/admin/services/managedprocess/"


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def told(monkeypatch) -> list[ManagedProcess]:
    return play_worker(monkeypatch, act=lambda row: None)


def act(client, name: str, *rows: ManagedProcess, **data: str):
    chosen = {"action": name, "_selected_action": [row.pk for row in rows], **data}
    return client.post(PATH, chosen, follow=True)


def now_of(row: ManagedProcess) -> ManagedProcess:
    return ManagedProcess.objects.get(pk=row.pk)


def test_rows_are_read_only_link_to_their_page_and_hide_values(sign_in, demo):
    row = healthy(demo, env={"SITE": "top-value"})
    client = sign_in("admin")
    one = client.get(f"{PATH}{row.pk}/change/").content.decode()
    many = client.get(PATH + "?q=web&status__exact=healthy&purpose__exact=service&project=demo").content.decode()
    assert "SITE" in one
    assert "top-value" not in one + many
    assert 'href="/services/demo/web/"' in one
    assert 'href="/services/demo/web/"' in many
    assert client.post(f"{PATH}{row.pk}/change/", {"status": "exited"}).status_code == 403
    assert client.post(f"{PATH}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.get(PATH + "add/").status_code == 403
    assert now_of(row).status == "healthy"


def test_the_list_costs_the_same_however_long(sign_in, demo, django_assert_max_num_queries):
    tick()
    specs = [make_spec(demo, f"s{number:03}") for number in range(80)]
    lifecycle.declare(demo, specs, quotas=lifecycle.Quotas(project=99), by=SWEEP, now=timezone.now())
    client = sign_in("admin")
    with django_assert_max_num_queries(14):
        assert client.get(PATH).status_code == 200


@pytest.mark.parametrize(
    ("verb", "status"), [("stop", "stopping"), ("kill", "stopping"), ("restart", "restarting"), ("start", "healthy")]
)
def test_verbs_are_committed_and_told_without_waiting(sign_in, demo, told, verb, status):
    row = healthy(demo)
    text = act(sign_in("admin"), verb, row).content.decode()
    assert now_of(row).status == status
    if verb == "start":
        assert "Demo/web is healthy already." in text
        assert told == []
    else:
        assert told == [row]
        event = Event.objects.order_by("-id").first()
        assert (event.payload["via"], event.actor.startswith("user:admin")) == ("admin", True)


def test_start_and_extend(sign_in, demo, told):
    ended, live = failed(demo, "ended"), healthy(demo, "live", ttl_minutes=30)
    client = sign_in("admin")
    act(client, "start", ended)
    assert (now_of(ended).status, now_of(ended).generation) == ("starting", 2)
    before = live.expires_at
    act(client, "extend_an_hour", live)
    assert (now_of(live).expires_at - before).total_seconds() == 3600


def test_one_refusal_stops_none_of_the_others(sign_in, demo, told):
    ended, live = failed(demo, "a"), healthy(demo, "b")
    text = act(sign_in("admin"), "stop", ended, live).content.decode()
    assert "Demo/a is failed already." in text
    assert (now_of(ended).status, now_of(live).status) == ("failed", "stopping")


def test_without_a_worker_nothing_is_changed(sign_in, demo, told):
    row = healthy(demo)
    WorkerHost.objects.all().delete()
    assert "No worker ticks" in act(sign_in("admin"), "stop", row).content.decode()
    assert (now_of(row).status, told) == ("healthy", [])


class TestForce:
    def test_asks_for_a_reason_and_changes_nothing_without_one(self, sign_in, demo, told):
        row = healthy(demo)
        client = sign_in("admin")
        asked = act(client, "force", row).content.decode()
        assert 'name="reason"' in asked
        assert f'name="_selected_action" value="{row.pk}"' in asked
        for reason in ("", "   ", "x" * 501):
            assert 'name="reason"' in act(client, "force", row, reason=reason).content.decode()
        assert now_of(row).status == "healthy"
        assert not Event.objects.filter(kind="service.forced").exists()

    def test_writes_off_and_records_who_and_why(self, sign_in, demo, told):
        row, loop = healthy(demo), launched(demo, "loop", "loop")
        ended = failed(demo, "ended")
        text = act(sign_in("admin"), "force", row, loop, ended, reason="its disk is gone").content.decode()
        assert (now_of(row).status, now_of(loop).status, now_of(ended).status) == ("lost", "lost", "failed")
        assert "Demo/ended is failed already." in text
        event = Event.objects.get(kind="service.forced")
        assert (event.payload["reason"], event.payload["via"]) == ("its disk is gone", "admin")
        assert event.actor.startswith("user:admin")
        # The worker lets go of them.
        assert {each.pk for each in told} == {row.pk, loop.pk}
        with pytest.raises(Conflict):
            lifecycle.stop(now_of(row), by=SWEEP, now=timezone.now())

    @pytest.mark.parametrize("role", ["viewer", "operator"])
    def test_is_an_admins(self, sign_in, demo, told, role):
        row = healthy(demo)
        assert act(sign_in(role), "force", row, reason="because").status_code == 403
        assert now_of(row).status == "healthy"
