"""The repair bench of the kanban: through verbs, never by editing a status; profiles are edited and checked."""

import json
import re
import secrets

import pytest
from django.contrib.admin.utils import quote
from django.utils import timezone

from kanban import lifecycle
from kanban.models import Board, Link, Profile, Task
from projects.models import Event
from tests.kanban import rows

pytestmark = pytest.mark.django_db
TASKS = "/admin/kanban/task/"
PROFILES = "/admin/kanban/profile/"
HOSTILE = "<script>alert(1)</script>"


def act(client, path: str, name: str, *chosen, **data: str):
    form = {"action": name, "_selected_action": [row.pk for row in chosen], **data}
    return client.post(path, form, follow=True)


def text_of(answer) -> str:
    return answer.content.decode()


@pytest.fixture
def client(sign_in):
    return sign_in("admin")


class TestRows:
    def test_every_id_is_found_also_where_the_admin_reads_it_as_a_quoted_sign(self, client, monkeypatch):
        monkeypatch.setattr(secrets, "token_hex", lambda _: "230ec5a7")
        task = rows.task("Its id holds what stands for # in the admin's addresses")
        page = text_of(client.get(task.get_absolute_url()))
        [address] = re.findall(r'href="(/admin/kanban/task/[^"]+/change/)"', page)
        assert address != f"{TASKS}{task.pk}/change/"
        assert client.get(address).context["original"] == task

    def test_are_read_only_and_lead_to_their_pages(self, client, make_task_in):
        task = make_task_in("running", body=HOSTILE, title="A task")
        child = rows.task("Waits", parents=[task.pk])
        lifecycle.comment(task, HOSTILE, author="anna", by=rows.ANNA, now=timezone.now())
        run, link = rows.run_of(task), Link.objects.get(child=child)
        for path, row, page in [
            (TASKS, task, f"/kanban/tasks/{task.pk}/"),
            ("/admin/kanban/run/", run, f"/runs/{run.pk}/"),
            ("/admin/kanban/link/", link, f"/kanban/tasks/{child.pk}/"),
            ("/admin/kanban/comment/", task.comments.get(), f"/kanban/tasks/{task.pk}/"),
        ]:
            for text in (text_of(client.get(f"{path}?q=t_")), text_of(client.get(f"{path}{quote(row.pk)}/change/"))):
                assert f'href="{page}"' in text, path
                assert HOSTILE not in text
            assert client.post(f"{path}{quote(row.pk)}/change/", {"status": "done"}).status_code == 403
            assert client.post(f"{path}{quote(row.pk)}/delete/", {"post": "yes"}).status_code == 403
            assert client.get(f"{path}add/").status_code == 403
        assert rows.fresh(task).status == "running"
        assert client.get(f"/admin/kanban/run/?task__id__exact={task.pk}").status_code == 200

    @pytest.mark.parametrize("path", [TASKS, "/admin/kanban/run/", "/admin/kanban/link/", "/admin/kanban/comment/"])
    def test_a_list_costs_the_same_however_long(self, client, make_task, django_assert_max_num_queries, path):
        parent = make_task()
        for _ in range(12):
            task = make_task(parents=[parent.pk])
            lifecycle.comment(task, "x", author="anna", by=rows.ANNA, now=timezone.now())
            rows.started(make_task())
        with django_assert_max_num_queries(16):
            assert client.get(path).status_code == 200

    @pytest.mark.parametrize("role", ["viewer", "operator"])
    def test_are_an_admins(self, sign_in, make_task, role):
        task = make_task()
        assert act(sign_in(role), TASKS, "archive", task).status_code == 403
        assert rows.fresh(task).status == "ready"


class TestActions:
    def test_give_verbs_and_one_refusal_stops_none_of_the_others(self, client, make_task_in):
        running, ready, blocked = make_task_in("running"), make_task_in("ready"), make_task_in("blocked")
        text = text_of(act(client, TASKS, "release", running, ready))
        assert rows.fresh(running).status == "ready"
        assert f"Refused for {ready.pk}: " in text
        act(client, TASKS, "retry", blocked)
        assert rows.fresh(blocked).status == "ready"
        act(client, TASKS, "archive", blocked)
        assert rows.fresh(blocked).status == "archived"
        event = Event.objects.filter(subject=blocked.subject).order_by("-id")[0]
        assert (event.kind, event.payload["via"]) == ("task.archived", "admin")
        assert event.actor.startswith("user:admin")

    @pytest.mark.parametrize(("name", "status"), [("force_ready", "ready"), ("force_blocked", "blocked")])
    def test_force_asks_for_a_reason_and_records_it(self, client, make_task_in, name, status):
        task = make_task_in("done")
        for reason in ({}, {"reason": "  "}, {"reason": "x" * 501}):
            assert 'name="reason"' in text_of(act(client, TASKS, name, task, **reason))
        assert rows.fresh(task).status == "done"
        act(client, TASKS, name, task, reason="the disk was lost")
        assert rows.fresh(task).status == status
        event = Event.objects.get(kind="task.forced")
        assert (event.payload["reason"], event.payload["via"]) == ("the disk was lost", "admin")

    def test_profiles_and_dispatch_are_paused_and_resumed(self, client):
        profile = rows.profile("demo")
        act(client, PROFILES, "pause", profile)
        assert Profile.objects.get(name="demo").paused_at is not None
        act(client, PROFILES, "resume", profile)
        assert Profile.objects.get(name="demo").paused_at is None
        board = lifecycle.the_board()
        act(client, "/admin/kanban/board/", "pause", board)
        assert Board.objects.get().paused_at is not None
        act(client, "/admin/kanban/board/", "resume", board)
        assert Board.objects.get().paused_at is None


class TestProfiles:
    FORM = {"reports": "cli", "concurrency": "3", "stop_grace_s": "10", "enabled": "true", "failure_limit": ""}

    def save(self, client, name: str, argv: object, env: object = ""):
        raw = json.dumps(env) if env != "" else "{}"
        return client.post(f"{PROFILES}add/", {**self.FORM, "name": name, "argv": json.dumps(argv), "env": raw})

    def test_a_profile_is_made(self, client):
        assert self.save(client, "mine", ["agent", "{task_id}"], {"KEY": "top-value"}).status_code == 302
        made = Profile.objects.get(name="mine")
        assert (made.argv, made.env, made.concurrency, made.enabled) == (
            ["agent", "{task_id}"],
            {"KEY": "top-value"},
            3,
            True,
        )
        assert "top-value" not in text_of(client.get("/kanban/profiles/"))

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ([], "the program, then its arguments"),
            ("agent -x", "the program, then its arguments"),
            (["agent", 3], "the program, then its arguments"),
            ([" "], "names the program"),
            (["agent", "{nothing}"], "stands for nothing"),
        ],
    )
    def test_a_template_that_cannot_be_is_refused_with_a_sentence(self, client, argv, said):
        answer = self.save(client, "mine", argv)
        assert answer.status_code == 200
        assert said in text_of(answer)
        assert not Profile.objects.filter(name="mine").exists()

    @pytest.mark.parametrize("env", [["x"], {"KEY": 3}, {"": "x"}, {"A=B": "x"}])
    def test_an_environment_is_an_object_of_texts(self, client, env):
        answer = self.save(client, "mine", ["agent"], env)
        assert answer.status_code == 200
        assert not Profile.objects.filter(name="mine").exists()

    def test_a_name_that_no_address_holds_is_refused(self, client):
        assert self.save(client, "a/b", ["agent"]).status_code == 200
        assert not Task.objects.exists()
        assert not Profile.objects.filter(name="a/b").exists()
