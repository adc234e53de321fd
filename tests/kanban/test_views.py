"""Pages of the kanban: what they say, who may, what a stale page hears, and what they cost."""

import re
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from kanban import lifecycle
from kanban.models import Task
from kanban.pages.cards import seen
from projects.models import Project
from tests.kanban import rows
from tests.services.world import make_project

pytestmark = pytest.mark.django_db
FRAME = 6  # session, user, groups, preference, log head, hosts
HOSTILE = "<script>alert(1)</script>"


def text_of(answer) -> str:
    return answer.content.decode()


def fragment(client, path: str, name: str, **headers: str):
    return client.get(path, headers={"HX-Request": "true", "HX-Target": name, **headers})


def post(client, task: Task, verb: str, **fields):
    return client.post(f"/kanban/tasks/{task.pk}/{verb}/", {"seen": seen(task), **fields})


def needs_of(client) -> list[dict]:
    """Return what home says that somebody has to look at, the most urgent first."""
    return [need for group in client.get("/").context["needs"]["groups"] for need in group["needs"]]


class TestEveryPage:
    @pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
    def test_answers_to_every_role(self, sign_in, make_task_in, role):
        task = make_task_in("running", body=HOSTILE)
        client = sign_in(role)
        run = rows.run_of(task)
        for path in ("/kanban/", "/kanban/list/", "/kanban/profiles/", f"/kanban/tasks/{task.pk}/", f"/runs/{run.pk}/"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert HOSTILE not in text_of(answer)

    def test_what_is_not_there_is_404(self, sign_in):
        client = sign_in()
        for path in ("/kanban/tasks/t_00000000/", "/runs/999999/", "/kanban/tasks/t_00000000/move/"):
            assert client.get(path).status_code == 404


class TestViewer:
    def test_sees_no_verbs_and_may_post_none(self, sign_in, make_task_in):
        task = make_task_in("ready")
        client = sign_in("viewer")
        for path in ("/kanban/", f"/kanban/tasks/{task.pk}/", "/kanban/profiles/", "/kanban/list/"):
            text = text_of(client.get(path))
            assert 'form="verb"' not in text
            assert "data-dialog" not in text
            assert "/kanban/tasks/new/" not in text
        for path in (
            *(f"/kanban/tasks/{task.pk}/{verb}/" for verb in ("move", "archive", "block", "edit", "comment", "link")),
            *("/kanban/tasks/new/", "/kanban/bulk/", "/kanban/undo/", "/kanban/sample/", "/kanban/dispatch/nudge/"),
            *("/kanban/dispatch/pause/", "/kanban/profiles/demo/pause/", "/kanban/profiles/demo/resume/"),
        ):
            assert client.post(path, {"to": "todo"}).status_code == 403, path
        for path in (f"/kanban/tasks/{task.pk}/move/", "/kanban/tasks/new/", "/kanban/profiles/demo/pause/"):
            assert client.get(path).status_code == 403, path
        assert rows.fresh(task).status == "ready"


class TestBoard:
    def test_explains_itself_when_it_is_empty_and_offers_a_sample(self, sign_in):
        client = sign_in()
        text = text_of(client.get("/kanban/"))
        assert "The board is empty" in text
        assert 'formaction="/kanban/sample/"' in text
        assert "/kanban/sample/" not in text_of(sign_in("viewer").get("/kanban/"))
        assert client.post("/kanban/sample/").status_code == 302
        task = Task.objects.get()
        assert (task.assignee, task.status) == ("demo", "ready")
        assert "The board is empty" not in text_of(client.get("/kanban/"))

    def test_has_columns_in_order_and_review_only_when_something_is_in_it(self, sign_in, make_task_in):
        make_task_in("ready")
        client = sign_in()

        def columns(query: str = "") -> list[str]:
            return re.findall(r'data-column="(\w+)"', text_of(client.get(f"/kanban/?{query}")))

        assert columns() == ["triage", "todo", "ready", "running", "blocked", "done"]
        make_task_in("review")
        assert columns("archived=1") == [
            *("triage", "todo", "ready", "running", "review", "blocked", "done", "archived")
        ]

    def test_costs_twelve_queries_however_many_cards(
        self, sign_in, make_task, workspace, django_assert_max_num_queries
    ):
        make_task(project=make_project(workspace).slug)
        for status in ("triage", "todo", "ready", "running", "review", "blocked", "done", "archived"):
            for _ in range(3):
                rows.in_status(status)
        client = sign_in()
        with django_assert_max_num_queries(12):
            assert client.get("/kanban/?archived=1").status_code == 200

    def test_a_column_pages_beyond_a_hundred(self, sign_in):
        now = timezone.now()
        Task.objects.bulk_create(
            Task(
                id=f"t_{number:08x}",
                title=f"Card {number}",
                status="ready",
                priority=-number,
                created_at=now,
                since=now,
                active_at=now,
            )
            for number in range(130)
        )
        client = sign_in()
        first = text_of(client.get("/kanban/"))
        assert first.count('data-task="') == 100
        assert "1–100 of 130" in first
        assert "page_ready=2" in first
        second = text_of(client.get("/kanban/?page_ready=2"))
        assert second.count('data-task="') == 30
        assert "101–130 of 130" in second
        assert text_of(client.get("/kanban/?page_ready=99")).count('data-task="') == 30

    @pytest.mark.parametrize("name", ["board", "switchboard", "column-ready", "column-running"])
    def test_gives_each_fragment_alone_with_an_etag(self, sign_in, make_task_in, name):
        make_task_in("ready")
        client = sign_in()
        answer = fragment(client, "/kanban/", name)
        assert f'id="{name}"' in text_of(answer)
        assert "<html" not in text_of(answer)
        again = fragment(client, "/kanban/", name, **{"If-None-Match": answer["ETag"]})
        assert again.status_code == 304

    def test_filters_stand_in_the_address(self, sign_in, make_task):
        make_task("Paint the fence", assignee="anna", tenant="home", priority=5)
        make_task("Mow the lawn", assignee="", tenant="garden", priority=1)
        client = sign_in()

        def titles(query: str) -> set[str]:
            text = text_of(client.get(f"/kanban/?{query}"))
            return {title for title in ("Paint the fence", "Mow the lawn") if title in text}

        assert titles("q=FENCE") == {"Paint the fence"}
        assert titles("assignee=-") == {"Mow the lawn"}
        assert titles("assignee=anna") == {"Paint the fence"}
        assert titles("tenant=garden") == {"Mow the lawn"}
        assert titles("priority=2") == {"Paint the fence"}
        assert titles("priority=x&project=") == {"Paint the fence", "Mow the lawn"}

    def test_marks_what_is_stale_by_words_and_a_dashed_border(self, sign_in, make_task):
        now = timezone.now()
        make_task("Old", now=now - timedelta(hours=3), assignee="")
        text = text_of(sign_in().get("/kanban/"))
        assert "is-quiet is-warn" in text
        assert "no activity 3 h" in text
        assert "Stranded" in text

    def test_every_column_that_shows_an_old_worker_hears_of_its_end(self, sign_in, make_task_in):
        make_task_in("review")
        text = text_of(sign_in().get("/kanban/"))
        heard = dict(re.findall(r'data-column="(\w+)"[^>]*? data-live-kinds="([^"]*)"', text))
        for status in ("triage", "todo", "ready", "running", "review", "blocked"):
            assert {"task.exited", "task."} & set(heard[status].split()), status
        # A worker's process tells of nothing itself.
        assert "service" not in " ".join(heard.values())

    def test_what_has_no_place_is_stranded_here_and_at_home(self, sign_in, make_task, workspace):
        now = timezone.now()
        rows.tick(now)
        rows.profile()
        long_ago = now - timedelta(hours=1)
        for slug in ("gone", "lost", "away", "here"):
            make_task(f"Of {slug}", project=make_project(workspace, slug).slug, now=long_ago)
        Project.objects.filter(slug="gone").update(missing_since=now)
        Project.objects.filter(slug="lost").delete()
        Project.objects.filter(slug="away").update(node="silent")
        client = sign_in()
        text = text_of(client.get("/kanban/"))
        assert text.count("Stranded: its project is not there") == 2
        assert text.count("Stranded: its project&#x27;s host is silent") == 1
        assert text.count("Stranded") == 3
        found = [need for need in needs_of(client) if "stranded" in need["title"]]
        assert sorted(need["title"] for need in found) == [f"Of {slug}: stranded" for slug in ("away", "gone", "lost")]
        assert {need["post_label"] for need in found} == {"Hold"}

    def test_tells_that_the_dispatcher_is_paused_or_silent(self, sign_in):
        client = sign_in()
        assert "Dispatcher silent" in text_of(client.get("/kanban/"))
        client.post("/kanban/dispatch/pause/")
        assert "Dispatcher paused" in text_of(client.get("/kanban/"))
        client.post("/kanban/dispatch/resume/")
        rows.tick()
        client.post("/kanban/dispatch/nudge/")
        assert "Dispatching" in text_of(client.get("/kanban/"))

    def test_a_nudge_without_a_worker_changes_nothing(self, sign_in, make_task):
        client = sign_in()
        expired = rows.pulled(now=timezone.now() - timedelta(hours=1))
        before = rows.everything()
        assert "No worker ticks" in text_of(client.post("/kanban/dispatch/nudge/", follow=True))
        assert client.post("/kanban/dispatch/nudge/", headers={"HX-Request": "true"}).status_code == 503
        assert rows.everything() == before
        rows.tick()
        client.post("/kanban/dispatch/nudge/")
        assert rows.fresh_run(expired).outcome == "released"


class TestMoving:
    def test_a_move_is_done_told_and_can_be_undone(self, sign_in, make_task_in):
        task = make_task_in("ready")
        client = sign_in()
        text = text_of(client.post(f"/kanban/tasks/{task.pk}/move/", {"to": "todo", "seen": seen(task)}, follow=True))
        assert rows.fresh(task).status == "todo"
        token = re.search(r'name="token" value="([^"]+)"', text)[1]
        client.post("/kanban/undo/", {"token": token})
        assert rows.fresh(task).status == "ready"

    def test_an_illegal_move_says_why(self, sign_in, make_task_in):
        task = make_task_in("ready")
        client = sign_in()
        answer = client.post(f"/kanban/tasks/{task.pk}/move/", {"to": "running"}, headers={"HX-Request": "true"})
        assert answer.status_code == 409
        assert "dispatcher claims" in text_of(answer)

    def test_what_changed_since_is_shown_now_against_then(self, sign_in, make_task_in):
        task = make_task_in("ready")
        lifecycle.move_to(task, "triage", by=rows.ANNA, now=timezone.now())
        answer = sign_in().post(f"/kanban/tasks/{task.pk}/move/", {"to": "todo", "seen": seen(task).replace("x", "")})
        stale = sign_in().post(f"/kanban/tasks/{task.pk}/move/", {"to": "todo", "seen": "ready.1"})
        assert answer.status_code in {302, 409}
        assert stale.status_code == 409
        assert "Changed since you looked" in text_of(stale)
        assert "Ready" in text_of(stale)


class TestNew:
    def test_makes_a_task_with_everything(self, sign_in, make_task):
        parent = make_task("First")
        client = sign_in()
        answer = client.post(
            "/kanban/tasks/new/",
            {
                "title": "Second",
                "body": "*do*",
                "assignee": "demo",
                "priority": "7",
                "tenant": "x",
                "parents": parent.pk,
                "max_runtime_s": "60",
                "max_cost_usd": "1.5",
                "failure_limit": "2",
                "idempotency_key": "k-1",
            },
        )
        made = Task.objects.get(title="Second")
        assert answer["Location"] == made.get_absolute_url()
        assert (made.status, made.priority, made.max_runtime_s) == ("todo", 7, 60)
        client.post("/kanban/tasks/new/", {"title": "Second", "idempotency_key": "k-1"})
        assert Task.objects.filter(title="Second").count() == 1

    def test_a_mistake_is_told_beside_its_field(self, sign_in):
        answer = sign_in().post("/kanban/tasks/new/", {"title": " ", "parents": "t_nothere"})
        assert answer.status_code == 422
        assert not Task.objects.exists()
        answer = sign_in().post("/kanban/tasks/new/", {"title": "x", "parents": "t_nothere"})
        assert "There is no task t_nothere" in text_of(answer)


class TestHome:
    def needs(self, client) -> list[dict]:
        return needs_of(client)

    def test_tells_what_of_the_work_needs_somebody_with_a_remedy(self, sign_in, make_task_in):
        now = timezone.now()
        long_ago = now - timedelta(hours=2)
        blocked = make_task_in("blocked")
        review = make_task_in("review")
        broken = rows.task("Breaks", failure_limit=1)
        rows.ended(rows.started(broken), 3)
        crashed = rows.task("Crashes")
        rows.ended(rows.started(crashed), 3)
        quota = rows.task("Quota")
        rows.ended(rows.started(quota), 75)
        silent = rows.started(rows.task("Silent", now=long_ago), now=long_ago).task
        stranded = rows.task("Stranded", assignee="nobody-there", now=long_ago)
        paused = rows.profile("slow")
        lifecycle.pause(paused, reason="too many alike", by=rows.ANNA, now=now)
        lifecycle.pause_dispatch(by=rows.ANNA, now=now)
        client = sign_in()
        found = {need["url"].rstrip("/").rpartition("/")[2]: need for need in self.needs(client)}
        said = {
            blocked.pk: ("special", "Answer…"),
            review.pk: ("special", "Approve"),
            broken.pk: ("special", "Retry"),
            crashed.pk: ("bad", "Hold"),
            quota.pk: ("warn", "Hold"),
            silent.pk: ("warn", "Release…"),
            stranded.pk: ("warn", "Assign…"),
            "profiles": ("bad", "Resume"),
            "kanban": ("warn", "Resume"),
        }
        assert {
            key: (need["severity"], need.get("post_label") or need.get("act_label"))
            for key, need in found.items()
            if key in said
        } == said
        urgencies = [need["severity"] for need in self.needs(client)]
        assert urgencies == sorted(urgencies, key=["special", "bad", "warn"].index)
        for key in (blocked.pk, review.pk, broken.pk, crashed.pk, quota.pk, "profiles", "kanban"):
            answer = client.post(
                found[key].get("post_url") or found[key]["act_url"],
                {"seen": found[key].get("seen", "")},
                headers={"Referer": "http://testserver/"},
            )
            assert (answer.status_code, answer.headers.get("Location")) == (302, "/"), key
        left = {need["url"].rstrip("/").rpartition("/")[2] for need in self.needs(client)}
        assert left & set(said) == {silent.pk, stranded.pk}

    def test_over_budget_is_told_as_such(self, sign_in, make_task):
        run = rows.started(make_task("Dear", max_cost_usd=Decimal(1)))
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=timezone.now())
        [need] = [need for need in self.needs(sign_in()) if "Dear" in need["title"]]
        assert "over budget" in need["title"]
        assert (need["act_label"], "post_url" in need) == ("Raise the limit…", False)

    def test_with_a_greater_limit_it_goes_on(self, sign_in, make_task):
        run = rows.started(make_task("Dear", max_cost_usd=Decimal(1)))
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=timezone.now())
        client, address = sign_in(), f"/kanban/tasks/{run.task_id}"
        refusal = client.post(f"{address}/unblock/", follow=True)
        assert "2.00 of 1.00 dollars are spent. Raise the limit" in text_of(refusal)
        client.post(f"{address}/limit/", {"max_cost_usd": "2"})
        assert rows.fresh(run.task).status == "blocked"
        client.post(f"{address}/limit/", {"max_cost_usd": "5"})
        assert rows.fresh(run.task).status == "ready"
        assert not [need for need in self.needs(client) if "Dear" in need["title"]]


class TestSystem:
    def test_pauses_and_resumes_and_tells_of_the_last_pass(self, sign_in, make_task):
        rows.tick()
        client = sign_in()
        make_task("Quick")
        assert "1 task is started" in text_of(
            client.post("/kanban/dispatch/nudge/", headers={"Referer": "http://testserver/system/"}, follow=True)
        )
        client.post("/kanban/dispatch/pause/")
        text = text_of(client.get("/system/"))
        assert "claimed <strong>1</strong>" in text
        assert "/kanban/dispatch/resume/" in text
        assert "/kanban/dispatch/resume/" not in text_of(sign_in("viewer").get("/system/"))
        assert fragment(client, "/system/", "dispatch").status_code == 200
