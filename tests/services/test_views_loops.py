"""Pages of a loop: who sees its buttons, what they ask, and a rollback from its preview to its permalink."""

import json
from pathlib import Path

import pytest
from django.test import Client

from projects.models import Event, LoopStop, Project, Rollback, Story
from services import loops
from services.models import ManagedProcess, WorkerHost
from tests.services.repository import commit, everything, flip, git
from tests.services.rows import tick

pytestmark = pytest.mark.django_db
ASKED = ["start", "stop", "budget", "rollback/confirm"]
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def operator(sign_in) -> Client:
    return sign_in("operator")


def said(response) -> str:
    """Return what the next page tells of a verb."""
    return " ".join(str(message) for message in response.wsgi_request._messages)


class TestWhoSees:
    def test_a_viewer_sees_no_verbs(self, root, sign_in):
        text = sign_in("viewer").get("/projects/demo/").content.decode()
        for verb in ("start/", "stop/", "budget/", "rollback/", "loop/"):
            assert f"/projects/demo/{verb}" not in text
        assert "/projects/demo/start/" not in sign_in("viewer").get("/projects/").content.decode()
        assert "Roll back…" not in sign_in("viewer").get("/projects/demo/rollback/").content.decode()

    @pytest.mark.parametrize("verb", [*ASKED, "stories/US-001/requeue", "loop"])
    def test_a_viewer_may_not(self, root, worker, sign_in, verb):
        before = everything(root)
        client = sign_in("viewer")
        assert client.get(f"/projects/demo/{verb}/?head=abc").status_code == 403
        assert client.post(f"/projects/demo/{verb}/", {"grace_s": "10", "expected_head": "a"}).status_code == 403
        assert everything(root) == before
        assert not Event.objects.filter(kind__startswith="loop.").exists()

    def test_an_operator_sees_what_fits(self, root, operator):
        text = operator.get("/projects/demo/").content.decode()
        assert "/projects/demo/start/" in text
        assert "/projects/demo/stop/" not in text
        assert "/projects/demo/loop/" not in text
        Project.objects.update(running=True, pid=7)
        text = operator.get("/projects/demo/").content.decode()
        assert "/projects/demo/stop/" in text
        assert "/projects/demo/start/" not in text
        assert "/projects/demo/stop/" in operator.get("/projects/").content.decode()

    def test_an_administrator_sets_what_is_run(self, root, sign_in, operator):
        assert operator.get("/projects/demo/loop/").status_code == 403
        admin = sign_in("admin")
        assert "/projects/demo/loop/" in admin.get("/projects/demo/").content.decode()
        assert admin.post("/projects/demo/loop/", {"agent": "claude -p", "command": ""}).status_code == 302
        project = Project.objects.get()
        assert (project.loop_agent, project.loop_command) == ("claude -p", "")
        # Never the words: they may hold a key.
        payload = Event.objects.get(kind="loop.configured").payload
        assert (payload["what"], "claude" in str(payload)) == ("agent", False)

    @pytest.mark.parametrize(
        "wrong", [{"agent": "a", "command": "b"}, {"agent": 'say "no', "command": ""}, {"command": "x" * 2001}]
    )
    def test_a_command_that_will_not_do(self, root, sign_in, wrong):
        answer = sign_in("admin").post("/projects/demo/loop/", wrong)
        assert answer.status_code == 422
        assert (Project.objects.get().loop_agent, Project.objects.get().loop_command) == ("", "")

    def test_an_unknown_project(self, operator):
        for verb in (*ASKED, "rollback", "rollback/1", "stories/x/requeue"):
            assert operator.get(f"/projects/nobody/{verb}/").status_code == 404

    @pytest.mark.parametrize("verb", ["start", "stop", "rollback/confirm"])
    def test_a_form_without_its_token(self, root, worker, sign_in, verb):
        client = sign_in("operator", enforce_csrf_checks=True)
        assert client.post(f"/projects/demo/{verb}/", {"grace_s": "10"}).status_code == 403
        assert (LoopStop.objects.count(), Rollback.objects.count(), ManagedProcess.objects.count()) == (0, 0, 0)


class TestStart:
    def test_it_asks_how_far_and_says_what_it_runs(self, commanded, operator, sign_in):
        text = operator.get("/projects/demo/start/").content.decode()
        assert "own loop command" in text
        assert "ralph 10" not in text
        assert "ralph 10" in sign_in("admin").get("/projects/demo/start/").content.decode()
        for name in ("max_iterations", "max_cost_usd", "resume"):
            assert f'name="{name}"' in text

    def test_it_starts(self, commanded, worker, operator):
        answer = operator.post("/projects/demo/start/", {"max_iterations": "4"})
        row = ManagedProcess.objects.get()
        assert (answer.status_code, answer["Location"]) == (302, "/projects/demo/")
        assert row.args == ["4"]
        assert f"process {row.pid}" in said(answer)

    def test_without_a_command_it_says_what_to_do(self, demo, operator, sign_in, settings):
        settings.ANDON_LOOP_AGENT = ""
        text = operator.get("/projects/demo/start/").content.decode()
        assert "ANDON_LOOP_AGENT" in text
        assert "/projects/demo/loop/" not in text
        assert "/projects/demo/loop/" in sign_in("admin").get("/projects/demo/start/").content.decode()

    @pytest.mark.parametrize("wrong", [{"max_iterations": "0"}, {"max_iterations": "x"}, {"max_cost_usd": "-1"}])
    def test_a_mistake_stands_beside_its_field(self, commanded, worker, operator, wrong):
        answer = operator.post("/projects/demo/start/", wrong)
        assert answer.status_code == 422
        assert f"id_{next(iter(wrong))}_error" in answer.content.decode()
        assert worker == []

    def test_a_refusal_is_told_on_the_project(self, commanded, worker, operator):
        operator.post("/projects/demo/start/", {})
        answer = operator.post("/projects/demo/start/", {})
        assert "runs already" in said(answer)


class TestStop:
    def test_now(self, commanded, worker, operator, monkeypatch):
        operator.post("/projects/demo/start/", {})
        answer = operator.post("/projects/demo/stop/", {"grace_s": "10"})
        assert "The loop has stopped." in said(answer)
        assert LoopStop.objects.get().asked_via == "page"

    def test_after_the_iteration_nobody_waits(self, commanded, worker, operator, monkeypatch):
        operator.post("/projects/demo/start/", {})
        monkeypatch.setattr(loops.orders, "tell", lambda rows: None)
        answer = operator.post("/projects/demo/stop/", {"grace_s": "3600"})
        assert "after its iteration" in said(answer)
        text = operator.get("/projects/demo/").content.decode()
        assert "The loop is being stopped" in text
        assert LoopStop.objects.get().grace_s == 3600

    @pytest.mark.parametrize("grace_s", ["", "7", "-1", "soon"])
    def test_a_choice_that_was_not_offered(self, commanded, operator, grace_s):
        assert operator.post("/projects/demo/stop/", {"grace_s": grace_s}).status_code == 422
        assert not LoopStop.objects.exists()

    def test_without_a_worker(self, commanded, operator):
        WorkerHost.objects.all().delete()
        assert "No worker ticks" in said(operator.post("/projects/demo/stop/", {"grace_s": "0"}))


class TestBudget:
    def test_it_is_written_and_shown_again(self, root, operator):
        answer = operator.post("/projects/demo/budget/", {"max_iterations": "3", "max_cost_usd": "2.5"})
        assert answer.status_code == 302
        assert json.loads((root / ".ralph/budget.json").read_text()) == {"max_iterations": 3, "max_cost_usd": 2.5}
        text = operator.get("/projects/demo/budget/").content.decode()
        assert 'value="3"' in text
        assert 'value="2.5"' in text
        assert Event.objects.get(kind="loop.budget_set").payload["max_cost_usd"] == 2.5

    def test_a_folder_that_leads_out_is_not_written(self, root, operator, tmp_path):
        (root / ".ralph").symlink_to(tmp_path)
        assert operator.post("/projects/demo/budget/", {"max_iterations": "3"}).status_code == 422
        assert not (tmp_path / "budget.json").exists()
        assert not Event.objects.filter(kind="loop.budget_set").exists()


class TestRequeue:
    def test_a_story_is_opened_again(self, root, operator):
        path = root / "scripts/ralph/prd.json"
        before = path.read_text()
        assert operator.get("/projects/demo/stories/US-001/requeue/").status_code == 200
        assert path.read_text() == before
        answer = operator.post("/projects/demo/stories/US-001/requeue/")
        assert (answer.status_code, answer["Location"]) == (302, "/projects/demo/stories/US-001/")
        assert [story["passes"] for story in json.loads(path.read_text())["userStories"]] == [False, True, False]
        assert Event.objects.get(kind="story.requeue_asked").actor.startswith("user:operator-")

    def test_one_that_is_not_there(self, root, operator):
        assert operator.post("/projects/demo/stories/US-9/requeue/").status_code == 404
        Story.objects.filter(key="US-001").update(key="US-77")
        assert "US-77" in said(operator.post("/projects/demo/stories/US-77/requeue/"))


class TestRollback:
    def fields(self, root: Path, **more: str) -> dict[str, str]:
        return {"expected_head": git(root, "rev-parse", "HEAD"), "idempotency_key": "k", **more}

    def test_from_the_preview_to_the_permalink(self, root, worker, operator, django_assert_max_num_queries):
        with django_assert_max_num_queries(12):
            text = operator.get("/projects/demo/rollback/").content.decode()
        head = git(root, "rev-parse", "HEAD")
        assert head[:12] in text
        assert "feat: [US-002] Story 2" in text
        assert "b.py" in text
        assert "data-blocker" not in text
        link = text.split('href="/projects/demo/rollback/confirm/')[1].split('"')[0].replace("&amp;", "&")
        asked = operator.get(f"/projects/demo/rollback/confirm/{link}").content.decode()
        assert f'value="{head}"' in asked
        answer = operator.post("/projects/demo/rollback/confirm/", self.fields(root, story="US-002"))
        row = Rollback.objects.get()
        assert (answer.status_code, answer["Location"]) == (302, f"/projects/demo/rollback/{row.pk}/")
        text = operator.get(answer["Location"]).content.decode()
        assert row.backup_ref in text
        assert f"git revert --no-edit {row.new}" in text
        # It works on the tree as it is: bookkeeping is dirty, as always.
        git(root, "revert", "--no-edit", row.new)
        assert (root / "b.py").read_text() == "b = 2\n"
        assert row.get_absolute_url() in operator.get("/projects/demo/rollback/").content.decode()

    def test_after_one_an_older_commit_is_chosen(self, root, worker, operator):
        commit(root, f"feat: [US-003] {HOSTILE}", c__py="c")
        older, newest = git(root, "rev-parse", "HEAD~1"), git(root, "rev-parse", "HEAD")
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert f'<option value="{newest}" selected>' in text
        assert f'<option value="{older}">' in text
        for sign in ("<script>alert", "\x1b", "\u202e"):
            assert sign not in text
        operator.post("/projects/demo/rollback/confirm/", self.fields(root, story="US-003"))
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert text.count("data-blocker") == 1
        assert "Choose an older commit" in text
        chosen = operator.get(f"/projects/demo/rollback/?commit={older}").content.decode()
        assert f'<option value="{older}" selected>' in chosen
        assert "data-blocker" not in chosen
        assert f"commit={older}" in chosen.partition("/rollback/confirm/")[2]
        said = {**self.fields(root, story="US-002", commit=older), "idempotency_key": "k2"}
        operator.post("/projects/demo/rollback/confirm/", said)
        assert [row.reverted_commit for row in Rollback.objects.order_by("pk")] == [newest, older]
        assert not (root / "b.py").exists()

    def test_a_commit_beyond_those_offered_and_one_that_is_none(self, root, operator, monkeypatch):
        commit(root, "feat: [US-003] Story 3", c__py="c")
        older = git(root, "rev-parse", "HEAD~1")
        commit(root, "feat: [US-003] More", d__py="d")
        monkeypatch.setattr("projects.rollback.RECENT", 2)
        text = operator.get(f"/projects/demo/rollback/?commit={older}~").content.decode()
        assert '<option value="" selected disabled>' in text
        assert "unknown-commit" in text
        root_commit = git(root, "rev-list", "--max-parents=0", "HEAD")
        text = operator.get(f"/projects/demo/rollback/?commit={root_commit}").content.decode()
        assert f'<option value="{root_commit}" selected>' in text

    def test_a_stale_preview_is_shown_against_now(self, root, worker, operator):
        fields = self.fields(root)
        now = commit(root, "more", c__py="c")
        answer = operator.post("/projects/demo/rollback/confirm/", fields)
        text = answer.content.decode()
        assert answer.status_code == 409
        assert fields["expected_head"][:12] in text
        assert now[:12] in text
        assert 'href="/projects/demo/rollback/"' in text

    def test_what_is_in_the_way_stands_there_with_its_paths(self, root, operator):
        (root / f"{HOSTILE.replace('/', '')}.py").write_text("x")
        git(root, "add", "-A", "--", "*.py")
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert 'data-blocker="dirty-tree"' in text
        assert "confirm/" not in text
        for sign in ("<script>alert", "\x1b", "\u202e"):
            assert sign not in text

    def test_a_refusal_is_told_on_the_preview(self, root, worker, operator):
        fields = self.fields(root)
        (root / "a.py").write_text("mine\n")
        answer = operator.post("/projects/demo/rollback/confirm/", fields)
        assert answer["Location"] == "/projects/demo/rollback/"
        row = Rollback.objects.get()
        text = operator.get(row.get_absolute_url()).content.decode()
        assert "dirty-tree" in text
        assert "a.py" in text
        assert "Nothing was changed" in text

    def test_stop_and_roll_back_is_one_question(self, root, operator):
        Project.objects.update(running=True, pid=7)
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert "Stop and roll back…" in text
        assert "stop=1" in text
        asked = operator.get("/projects/demo/rollback/confirm/?head=abc&stop=1").content.decode()
        assert "Stop the loop and roll back?" in asked

    def test_the_story_can_be_named(self, root, operator):
        flip(root, "US-003")
        commit(root, "two at once", d__py="d")
        flip(root, "US-001")
        text = operator.get("/projects/demo/rollback/").content.decode()
        if "story-unknown" in text:
            assert '<select id="rollback-story"' in text
        named = operator.get("/projects/demo/rollback/?story=US-003").content.decode()
        assert "data-blocker" not in named
        assert "US-003" in named

    def test_no_repository(self, demo, operator):
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert "There is nothing to look at." in text

    def test_hostile_commits_are_inert(self, root, operator):
        git(root, "commit", "-q", "--allow-empty", "-m", f"feat: [US-002] {HOSTILE.replace(chr(0x1B), '')}")
        commit(root, f"feat: [US-002] {HOSTILE}", e__py="e")
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert "&lt;script&gt;alert" in text
        for sign in ("<script>alert", "\x1b", "\u202e"):
            assert sign not in text

    def test_one_that_nobody_knows(self, root, operator):
        assert operator.get("/projects/demo/rollback/77/").status_code == 404
        assert operator.get(f"/projects/demo/rollback/{1 << 63}/").status_code == 404

    def test_a_confirm_without_a_head_leads_to_the_preview(self, root, operator):
        assert operator.get("/projects/demo/rollback/confirm/")["Location"] == "/projects/demo/rollback/"
        assert operator.post("/projects/demo/rollback/confirm/", {})["Location"] == "/projects/demo/rollback/"

    def test_a_viewer_reads_the_permalink(self, root, sign_in):
        tick()
        row = Rollback.objects.create(
            project="demo", node="n", path="/x", asked_by="a", asked_via="api", asked_at="2026-11-20T00:00Z"
        )
        assert sign_in("viewer").get(row.get_absolute_url()).status_code == 200


class TestMended:
    def test_a_crashed_loop_is_told_until_it_is_started_again(self, commanded, operator):
        known = {"process": 9, "pid": 5, "ended": True, "exit_code": 3, "cause": "crash"}
        Project.objects.update(loop_process=known)
        for path in ("/projects/demo/", "/"):
            text = operator.get(path).content.decode()
            assert "crashed" in text
            assert "xit code 3" in text
        assert "/services/~/9/" in operator.get("/projects/demo/").content.decode()
        Project.objects.update(loop_process={**known, "cause": "user"})
        assert "The last loop crashed" not in operator.get("/projects/demo/").content.decode()

    def test_what_a_loop_runs_is_an_administrators_to_see(self, commanded, worker, client_of, sign_in):
        Project.objects.update(loop_command="", loop_agent="env API_KEY=sk-secret claude -p")
        assert sign_in("operator").post("/projects/demo/start/", {}).status_code == 302
        row = ManagedProcess.objects.get()
        assert "sk-secret" not in " ".join(row.args)
        assert row.env["ANDON_LOOP_AGENT"] == "env API_KEY=sk-secret claude -p"
        Project.objects.update(loop_command="x --key sk-secret", loop_agent="", loop_process={})
        viewer = sign_in("viewer")
        seen = [
            client_of("viewer").get("/api/managed-processes?purpose=loop").content.decode(),
            client_of("viewer").get("/api/events").content.decode(),
            viewer.get(row.get_absolute_url()).content.decode(),
            sign_in("operator").get("/projects/demo/start/").content.decode(),
        ]
        assert "sk-secret" not in "".join(seen)

    def test_the_arguments_of_its_own_command_are_not_shown(self, commanded, worker, sign_in, client_of):
        Project.objects.update(loop_command="x --key sk-secret")
        sign_in("operator").post("/projects/demo/start/", {})
        row = ManagedProcess.objects.get()
        assert row.args == ["--key", "sk-secret"]
        [shown] = client_of("viewer").get("/api/managed-processes?purpose=loop").json()["items"]
        assert shown["args"] == ["…"]
        assert "sk-secret" not in sign_in("viewer").get(row.get_absolute_url()).content.decode()

    @pytest.mark.parametrize("path", ["stories/US-002/requeue", "budget", "rollback"])
    def test_a_project_of_another_host_is_left_alone(self, root, operator, path):
        Project.objects.update(node="another")
        before = everything(root)
        if path == "rollback":
            assert "lies on another" in operator.get("/projects/demo/rollback/").content.decode()
        else:
            answer = operator.post(f"/projects/demo/{path}/", {"max_iterations": "1"})
            assert answer.status_code == 409 or "lies on another" in said(answer)
        assert everything(root) == before

    def test_a_story_that_is_open_is_not_opened_again(self, root, operator):
        for _ in range(2):
            answer = operator.post("/projects/demo/stories/US-001/requeue/")
        assert "open already" in said(answer)
        assert Event.objects.filter(kind="story.requeue_asked").count() == 1

    def test_without_prd_json_nothing_is_rolled_back(self, root, worker, operator):
        """Its folder is known from before: the loop's own files are never rolled back."""
        (root / ".git/info/exclude").write_text("prd.json\n")
        git(root, "rm", "-q", "--cached", "scripts/ralph/prd.json")
        git(root, "commit", "-qm", "ignore it")
        commit(root, "feat: [US-001] more", m__py="m")
        (root / "scripts/ralph/prd.json").unlink()
        before = everything(root)
        operator.post(
            "/projects/demo/rollback/confirm/",
            {"expected_head": git(root, "rev-parse", "HEAD"), "idempotency_key": "k"},
        )
        assert Rollback.objects.get().code == "story-unknown"
        assert everything(root) == before

    def test_a_stuck_rollback_is_written_off_by_an_administrator(self, root, sign_in, operator):
        row = Rollback.objects.create(
            project="demo",
            node="n",
            path="/x",
            asked_by="a",
            asked_via="api",
            asked_at="2026-11-20T00:00Z",
            status="applying",
            head="a",
            new="b",
            backup_ref="c",
            extra={"waits_for": "the directory is away", "tries": 3},
        )
        assert "the directory is away" in operator.get("/projects/demo/").content.decode()
        assert operator.post(f"{row.get_absolute_url()}force/", {"reason": "x"}).status_code == 403
        admin = sign_in("admin")
        assert "Write off" in admin.get(row.get_absolute_url()).content.decode()
        assert admin.get(f"{row.get_absolute_url()}force/").status_code == 200
        admin.post(f"{row.get_absolute_url()}force/", {"reason": ""})
        assert Rollback.objects.get().is_open
        admin.post(f"{row.get_absolute_url()}force/", {"reason": "the disk is gone"})
        row.refresh_from_db()
        assert (row.status, row.code, row.detail) == ("undone", "forced", "the disk is gone")
        assert Event.objects.get(kind="rollback.forced").payload["reason"] == "the disk is gone"
        assert "Nothing was changed" not in admin.get(row.get_absolute_url()).content.decode()

    @pytest.mark.parametrize("mainline", ["0019", "1" * 4403, "x", "65"])
    def test_a_main_line_that_is_none(self, root, operator, mainline):
        assert operator.get(f"/projects/demo/rollback/?mainline={mainline}").status_code == 400

    def test_a_merge_asks_for_its_main_line(self, root, operator):
        git(root, "stash", "-q")
        git(root, "checkout", "-qb", "side", "HEAD~1")
        commit(root, "side", s__py="s\n")
        git(root, "checkout", "-q", "main")
        git(root, "merge", "-q", "--no-ff", "-m", "feat: [US-001] merge", "side")
        text = operator.get("/projects/demo/rollback/").content.decode()
        assert 'data-blocker="merge-commit"' in text
        assert '<select id="mainline"' in text
        assert "No file besides bookkeeping" not in text

    def test_many_stories_are_paged_and_long_lines_cut(self, imported, operator):
        imported("big", states=("pending",) * 450, progress="x" * 1_000_000)
        first = operator.get("/projects/big/").content.decode()
        assert len(first) < 400_000
        assert "US-200" in first
        assert "US-201<" not in first
        assert "US-450" in operator.get("/projects/big/?page=3").content.decode()

    def test_no_dollars_are_no_limit_that_anybody_means(self, commanded, worker, operator):
        assert operator.post("/projects/demo/start/", {"max_cost_usd": "0"}).status_code == 422
        assert worker == []
