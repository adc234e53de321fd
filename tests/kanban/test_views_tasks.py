"""The page of a task and of a run, the list, the profiles: what they say, what is posted, what they cost."""

import re
from dataclasses import replace
from datetime import timedelta
from unittest import mock
from urllib.parse import quote

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kanban import lifecycle, queries
from kanban.models import Link, Task
from kanban.pages import prose
from kanban.pages.cards import seen
from kanban.pages.tasks import TaskView
from kanban.states import Status
from projects.events import SWEEP, writing
from tests.kanban import rows
from tests.kanban.test_views import fragment, post, text_of
from tests.projects.test_cost_pages import whole

pytestmark = pytest.mark.django_db
TOKEN = re.compile(r'name="token" value="([^"]+)"')


class TestProse:
    @pytest.mark.parametrize(
        "text",
        [
            "<script>alert(1)</script>",
            "[x](javascript:alert(1))",
            "![x](https://evil.example/x.png)",
            '<a href="https://x" onclick="alert(1)">x</a>',
            "[x](data:text/html;base64,xxxx)",
            "<img src=x onerror=alert(1)>",
            "```html\n<style>*{}</style>\n```",
            '[x](https://a.example "onmouseover=alert(1)")',
        ],
    )
    def test_nothing_hostile_comes_through(self, text):
        html = prose.html(text)
        assert not re.search(r"<(script|img|style)|href=\"(javascript|data):|<[^>]+\son\w+=", html)

    def test_links_give_nothing_away_and_headings_stand_below_the_pages_own(self):
        html = prose.html("# Top\n\n[there](https://example.com) ~~gone~~\n\n| a |\n|---|\n| 1 |\n\n\tcode\u202e")
        assert "<h3>Top</h3>" in html
        assert 'rel="nofollow noopener noreferrer"' in html
        assert "<td>1</td>" in html
        assert "<s>gone</s>" in html
        assert "\u202e" not in html

    def test_what_is_endless_is_shown_as_it_was_written(self):
        html = prose.html("*x* <b>" + "y" * 70_000)
        assert html.startswith("<pre>*x* ")
        assert "<b>" not in html

    def test_is_shown_as_it_was_written_where_the_settings_say_so(self, sign_in, make_task, settings):
        task = make_task("Plain", body="*Do* <b>it</b>")
        client = sign_in()
        assert "<em>Do</em>" in text_of(client.get(task.get_absolute_url()))
        settings.ANDON_BOARD = replace(settings.ANDON_BOARD, render_markdown=False)
        text = text_of(client.get(task.get_absolute_url()))
        assert "<pre>*Do* &lt;b&gt;it" in text
        assert prose.html("") == ""


class TestTask:
    def test_shows_everything_and_costs_twelve_queries(self, sign_in, make_task, django_assert_max_num_queries):
        parent, task = make_task("Parent"), None
        task = make_task("The task", body="*Do*", parents=[parent.pk], max_cost_usd=None)
        make_task("Child", parents=[task.pk])
        lifecycle.complete(parent, by=rows.ANNA, now=timezone.now())
        run = rows.started(rows.fresh(task))
        lifecycle.comment(task, "**Said**", by=rows.as_run(run), now=timezone.now())
        rows.ended(run, 3)
        client = sign_in()
        with django_assert_max_num_queries(12):
            text = text_of(client.get(task.get_absolute_url()))
        for part in (
            "<em>Do</em>",
            "<strong>Said</strong>",
            "Finishing this unblocks 1 task",
            "Parent",
            "Child",
            "Crashed",
        ):
            assert part in text, part
        assert "Failed 1 of 5 times" in text
        assert '<svg class="graph"' in text

    @pytest.mark.parametrize("name", ["task-head", "task-body", "task-comments", "task-links", "task-side"])
    def test_gives_each_fragment_alone_with_an_etag(self, sign_in, make_task_in, name):
        url = make_task_in("blocked").get_absolute_url()
        client = sign_in()
        answer = fragment(client, url, name)
        assert f'id="{name}"' in text_of(answer)
        assert "<html" not in text_of(answer)
        assert fragment(client, url, name, **{"If-None-Match": answer["ETag"]}).status_code == 304

    @pytest.mark.parametrize("status", Status.values)
    def test_every_verb_is_offered_or_says_why_not(self, sign_in, make_task_in, status):
        task = make_task_in(status)
        view = sign_in().get(task.get_absolute_url()).context["v"]
        offered, refused = {verb.name for verb in view.verbs}, {verb.name: verb.why for verb in view.refused}
        assert len(offered) + len(refused) == 16
        assert all(refused.values())
        assert offered & refused.keys() == set()

    @pytest.mark.parametrize("status", Status.values)
    def test_what_is_offered_works_and_what_is_not_is_refused_without_a_trace(self, sign_in, status, make_task_in):
        client = sign_in()
        fields = {"kind": "needs_input", "reason": "x", "title": "New", "assignee": "anna", "priority": "3"}
        names = [verb.name for verb in client.get(make_task_in(status).get_absolute_url()).context["v"].verbs]
        for name in (
            "approve",
            "unblock",
            "ready",
            "complete",
            "block",
            "release",
            "todo",
            "triage",
            "reopen",
            "archive",
        ):
            task = make_task_in(status)
            answer = post(client, task, name, **fields)
            assert answer.status_code == 302, (name, text_of(answer)[-500:])
            moved = rows.fresh(task).status != status
            assert moved == (name in names), name

    def test_a_question_is_answered_and_the_task_goes_on(self, sign_in, make_task):
        task = make_task("Soil")
        task = lifecycle.block(task, "Peat or <b>coir</b>?", by=rows.ANNA, now=timezone.now())
        client = sign_in()
        text = text_of(client.get(task.get_absolute_url()))
        assert f'href="{task.get_absolute_url()}unblock/?seen=' in text
        assert "Answer…" in text
        asked = text_of(client.get(f"{task.get_absolute_url()}unblock/"))
        assert "Peat or &lt;b&gt;coir&lt;/b&gt;?" in asked
        stale = post(client, task, "unblock", answer="Peat.", seen="ready.1")
        assert (stale.status_code, task.comments.count()) == (409, 0)
        assert post(client, task, "unblock", answer="  Peat.\r\nIn **both** beds. ").status_code == 302
        comment = task.comments.get()
        assert (comment.body, comment.author.startswith("operator")) == ("Peat.\nIn **both** beds.", True)
        assert rows.fresh(task).status == "ready"

    @pytest.mark.parametrize("answer", ["", " \r\n "])
    def test_without_a_word_it_goes_on_as_well(self, sign_in, make_task_in, answer):
        task = make_task_in("blocked")
        assert post(sign_in(), task, "unblock", answer=answer).status_code == 302
        assert (rows.fresh(task).status, task.comments.count()) == ("ready", 0)

    def test_only_a_question_asks_for_an_answer_and_is_shown_as_it_was_asked(self, sign_in, make_task):
        client, task = sign_in(), make_task("Soil")
        url = f"{task.get_absolute_url()}unblock/"
        assert "Your answer" not in text_of(client.get(url))
        lifecycle.block(task, "Peat or coir?\n1. peat\n" + "x" * 5000, by=rows.ANNA, now=timezone.now())
        text = text_of(client.get(url))
        assert "Peat or coir?<br>1. peat<br>" in text
        assert "xxx…" in text
        assert "Your answer" in text
        rows.ended(rows.started(broken := make_task("Breaks", failure_limit=1)), 3)
        text = text_of(client.get(f"{broken.get_absolute_url()}unblock/"))
        assert "Your answer" not in text
        assert ">Retry<" in text

    def test_an_endless_answer_is_refused_and_nothing_moves(self, sign_in, make_task_in):
        task = make_task_in("blocked")
        answer = post(sign_in(), task, "unblock", answer="x" * 2_000_000)
        assert answer.status_code == 422
        assert (rows.fresh(task).status, task.comments.count()) == ("blocked", 0)

    def test_the_form_of_an_edit_notices_another_edit(self, sign_in, make_task):
        task = make_task("Before", body="one")
        client = sign_in()
        form = text_of(client.get(f"/kanban/tasks/{task.pk}/edit/"))
        mark = re.search(r'name="mark" value="(\w+)"', form)[1]
        lifecycle.edit(task, body="two", by=rows.ANNA, now=timezone.now())
        answer = post(client, task, "edit", title="Mine", body="three", mark=mark)
        assert answer.status_code == 409
        assert "three" in text_of(answer)
        assert "two" in text_of(answer)
        assert rows.fresh(task).title == "Before"

    def test_limits_are_shown_and_set(self, sign_in, make_task_in):
        task = make_task_in("ready", max_runtime_s=90)
        client, address = sign_in(), f"/kanban/tasks/{task.pk}/limit/"
        assert 'value="90"' in text_of(client.get(address))
        answer = client.post(address, {"max_runtime_s": "", "max_cost_usd": "2.5", "failure_limit": "2"})
        assert answer.status_code == 302
        task.refresh_from_db()
        assert (task.max_runtime_s, float(task.max_cost_usd), task.failure_limit) == (None, 2.5, 2)
        assert client.post(address, {"max_cost_usd": "-1"}).status_code == 422

    def test_comments_and_links(self, sign_in, make_task):
        task, other = make_task("One"), make_task("Other")
        client = sign_in()
        url = task.get_absolute_url()
        client.post(f"{url}comment/", {"body": "Hello"})
        assert task.comments.get().author.startswith("operator")
        assert client.post(f"{url}comment/", {"body": " "}).status_code == 400
        client.post(f"{url}link/", {"other": other.pk, "as_": "parent"})
        assert rows.fresh(task).status == "todo"
        again = client.post(f"{other.get_absolute_url()}link/", {"other": task.pk, "as_": "parent"}, follow=True)
        assert "waits for" in text_of(again)
        client.post(f"{url}unlink/", {"edge": f"parent:{other.pk}"})
        assert rows.fresh(task).status == "ready"

    def test_many_children_leave_no_parent_out(self, sign_in, make_task):
        task = make_task("Middle")
        others = [make_task() for _ in range(4)]
        Link.objects.bulk_create(Link(parent=task, child=other) for other in others[:3])
        Link.objects.create(parent=others[3], child=task)
        view = TaskView(task, timezone.now())
        with mock.patch("kanban.pages.tasks.LINKS_SHOWN", 2):
            assert [each.pk for each in view.parents] == [others[3].pk]
            assert len(view.children) == 2
        with mock.patch("kanban.queries.detail.LINKS_SHOWN", 2):
            found = queries.detail(task.pk)["links"]
        assert found == {"parents": [others[3].pk], "children": [each.pk for each in others[1:3]]}

    @pytest.mark.parametrize("name", ["t_\x00", "x" * 50, "\x00"])
    def test_no_name_of_nothing_is_looked_for(self, sign_in, make_task, name):
        task = make_task("One")
        client, url = sign_in(), task.get_absolute_url()
        with CaptureQueriesContext(connection) as asked:
            for place in ("link", "unlink"):
                answer = client.post(f"{url}{place}/", {"other": name, "as_": "parent", "edge": f"parent:{name}"})
                assert answer.status_code < 500
            answer = client.post("/kanban/bulk/", {"ids": [name], "act": "archive"})
            assert "There is no task" in text_of(answer)
            assert client.get(f"/kanban/tasks/{quote(name)}/").status_code in {400, 404}
        assert not [each["sql"] for each in asked if name in each["sql"]]

    @pytest.mark.parametrize("asked", ["q", "project", "tenant", "assignee", "sort", "status", "page"])
    def test_nor_of_a_filter(self, sign_in, make_task, asked):
        make_task("One")
        client = sign_in()
        for path in ("/kanban/", "/kanban/list/", "/kanban/list/export.csv"):
            with CaptureQueriesContext(connection) as queries_:
                answer = client.get(path, {asked: "a\x00b"})
                b"".join(answer) if answer.streaming else answer.content
            assert answer.status_code < 500
            assert not [each["sql"] for each in queries_ if "\x00" in each["sql"]]


class TestUndo:
    @pytest.mark.parametrize(
        ("was", "to"),
        [
            (was, to)
            for was in ("triage", "todo", "ready", "blocked", "done", "archived")
            for to in ("triage", "todo", "ready", "archived")
            if was != to
        ],
    )
    def test_brings_a_card_back_where_it_was(self, sign_in, make_task_in, was, to):
        task = make_task_in(was)
        client = sign_in()
        said = client.post(f"/kanban/tasks/{task.pk}/move/", {"to": to, "seen": seen(task)}, follow=True)
        assert rows.fresh(task).status in {to, "todo"}
        client.post("/kanban/undo/", {"token": TOKEN.search(text_of(said))[1]})
        assert rows.fresh(task).status == was

    def test_is_not_offered_for_a_worker_that_was_stopped(self, sign_in, make_task_in):
        task = make_task_in("running")
        said = sign_in().post(f"/kanban/tasks/{task.pk}/move/", {"to": "ready", "seen": seen(task)}, follow=True)
        assert rows.fresh(task).status == "ready"
        assert "data-undo" not in text_of(said)

    def test_comes_too_late_for_what_went_on_or_was_forged(self, sign_in, make_task_in):
        task = make_task_in("ready")
        client = sign_in()
        said = client.post(f"/kanban/tasks/{task.pk}/move/", {"to": "todo", "seen": seen(task)}, follow=True)
        lifecycle.archive(rows.fresh(task), by=rows.ANNA, now=timezone.now())
        assert client.post("/kanban/undo/", {"token": TOKEN.search(text_of(said))[1]}).status_code == 409
        assert "too late" in text_of(client.post("/kanban/undo/", {"token": "forged"}, follow=True))
        assert rows.fresh(task).status == "archived"


class TestBulk:
    def test_says_what_came_of_each(self, sign_in, make_task_in):
        ready, done = make_task_in("ready"), make_task_in("done")
        client = sign_in()
        answer = client.post("/kanban/bulk/", {"ids": [ready.pk, done.pk, "t_nothere"], "act": "move", "to": "blocked"})
        results = {each["id"]: each["ok"] for each in answer.context["results"]}
        assert results == {ready.pk: True, done.pk: False, "t_nothere": False}
        assert "2 of 3 were refused" in text_of(answer)
        client.post("/kanban/bulk/", {"ids": [done.pk, ready.pk], "act": "assign", "assignee": "bert"})
        assert {rows.fresh(done).assignee, rows.fresh(ready).assignee} == {"bert"}
        client.post("/kanban/bulk/", {"ids": [done.pk, done.pk], "act": "archive"})
        assert rows.fresh(done).status == "archived"
        assert client.post("/kanban/bulk/", {"act": "archive"}).status_code == 400


class TestList:
    def test_filters_sorts_pages_and_exports(self, sign_in, make_task, django_assert_max_num_queries):
        make_task("Alpha", priority=1, assignee="=cmd()")
        make_task("Beta", priority=9)
        client = sign_in()
        with django_assert_max_num_queries(12):
            text = text_of(client.get("/kanban/list/?sort=-priority"))
        assert text.index("Beta") < text.index("Alpha")
        assert 'aria-sort="descending"' in text
        assert "No task matches" in text_of(client.get("/kanban/list/?q=zzz&sort=nonsense&page=x"))
        answer = client.get("/kanban/list/export.csv?q=alpha")
        table = whole(answer)
        assert table.startswith("id,title,status")
        assert "'=cmd()" in table
        assert "Beta" not in table

    def test_has_the_order_that_is_asked_for_and_filters_keep_it(self, sign_in, make_task, make_task_in):
        make_task("Beta", priority=1)
        make_task("Alpha", priority=9)
        make_task_in("done", title="Gamma", priority=1)
        client = sign_in()

        def titles(query: str) -> list[str]:
            return [task.title for task in client.get(f"/kanban/list/?{query}").context["tasks"]]

        assert titles("sort=title") == ["Alpha", "Beta", "Gamma"]
        assert titles("sort=-title") == ["Gamma", "Beta", "Alpha"]
        assert titles("sort=-priority")[0] == "Alpha"
        assert titles("sort=priority")[-1] == "Alpha"
        assert titles("sort=status")[-1] == "Gamma"
        assert titles("sort=-status")[0] == "Gamma"
        assert titles("sort=") == titles("sort=-active") == titles("sort=--title") == titles("sort=limits__x")
        text = text_of(client.get("/kanban/list/?q=a&sort=-title"))
        for part in (
            'aria-sort="descending"><a class="sort" href="?q=a&amp;sort=title">',
            'href="?q=a&amp;sort=-priority">',
            'data-live-url="/kanban/list/?q=a&amp;sort=-title"',
            '<option value="-title" selected>',
            'href="/kanban/list/?sort=-title">Clear',
            "/kanban/list/export.csv?q=a&amp;sort=-title",
        ):
            assert part in text, part
        exported = whole(client.get("/kanban/list/export.csv?sort=-title"))
        assert exported.index("Gamma") < exported.index("Beta") < exported.index("Alpha")


class TestProfiles:
    def test_shows_what_each_does_and_how_it_did(self, sign_in, make_task, django_assert_max_num_queries):
        rows.ended(rows.started(make_task()), 3)
        rows.ended(rows.started(make_task()), 75)
        run = rows.started(make_task())
        lifecycle.complete(run.task, by=rows.as_run(run), now=timezone.now())
        client = sign_in()
        with django_assert_max_num_queries(12):
            answer = client.get("/kanban/profiles/")
        demo = next(view for view in answer.context["profiles"] if view.row.name == "demo")
        assert (demo.failure_rate, demo.quota_waits, demo.completed) == (50, 1, 1)
        assert "50 % failed" in text_of(answer)

    def test_is_paused_with_a_reason_and_resumed(self, sign_in):
        client = sign_in()
        client.post("/kanban/profiles/demo/pause/", {"reason": "It writes nonsense"})
        assert "It writes nonsense" in text_of(client.get("/kanban/"))
        assert client.post("/kanban/profiles/demo/pause/", {"reason": ""}).status_code == 302
        client.post("/kanban/profiles/demo/resume/")
        assert "It writes nonsense" not in text_of(client.get("/kanban/"))
        assert client.get("/kanban/profiles/nobody/pause/").status_code == 404


class TestRun:
    def test_of_an_older_one_its_own_events_are_shown(self, sign_in, make_task):
        run = rows.pulled(make_task())
        lifecycle.release(run.task, reason="Too slow", by=rows.ANNA, now=timezone.now())
        with writing():
            for number in range(210):
                lifecycle.moves.tell(run.task, "heartbeat", by=SWEEP, now=timezone.now(), run="x", n=number)
        found = sign_in().get(run.get_absolute_url()).context["events"]
        assert [event.kind for event in found] == ["task.reclaimed", "task.claimed"]

    def test_shows_outcome_error_and_cost(self, sign_in, make_task, django_assert_max_num_queries):
        run = rows.started(make_task())
        rows.ended(run, 3, tail="boom <script>")
        client = sign_in()
        with django_assert_max_num_queries(12):
            text = text_of(client.get(run.get_absolute_url()))
        assert "Crashed" in text
        assert "boom &lt;script&gt;" in text
        assert "Release" not in re.sub(r"(?s)<details.*?</details>", "", text).split("<main")[1]

    def test_of_a_worker_elsewhere_has_no_log(self, sign_in):
        run = rows.pulled(now=timezone.now() - timedelta(minutes=1))
        text = text_of(sign_in().get(run.get_absolute_url()))
        assert "A worker elsewhere" in text
        assert Task.objects.get().status == "running"
