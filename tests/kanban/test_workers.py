"""What a run's host makes before its worker starts, and what it refuses to start."""

import json
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from kanban import context, lifecycle, profiles, workers, workspaces
from kanban.models import Profile, Run
from kanban.states import Status
from projects import access
from projects.errors import Conflict, Unauthenticated
from projects.events import SWEEP
from projects.models import ApiToken, Event, Project
from projects.states import Role
from services import starting
from services.models import ManagedProcess
from services.starting import CannotStart, Prepared
from services.states import Purpose
from tests.kanban import rows
from tests.kanban.rows import ANNA, as_run
from tests.kanban.test_dispatch import whole_database
from tests.services import rows as processes
from tests.services.world import make_project

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("home", "workspace")]
ARGV = ["agent", "--task={task_id}", "{task_id}", "{title}", "{workspace}", "{context_file}", "{python}", "x {title}"]


def prepared(run: Run) -> Prepared:
    return workers.prepare(rows.process_of(run))


class TestPrepare:
    def test_arguments_stand_for_whole_arguments(self, home: Path) -> None:
        rows.profile(argv=ARGV)
        run = rows.claimed(rows.task("--rm -rf $(id); `x` {workspace}"))
        made = prepared(run)
        folder = home / "agents" / run.agent
        assert made.cwd == str(home / "workspaces" / run.task_id)
        assert Path(made.cwd).is_dir()
        assert list(made.argv) == [
            "agent",
            "--task={task_id}",
            run.task_id,
            "--rm -rf $(id); `x` {workspace}",
            made.cwd,
            str(folder / "context.md"),
            profiles.fill(["{python}"], {})[0],
            "x {title}",
        ]

    def test_its_environment(self, home: Path, settings: Any, workspace: Path) -> None:
        make_project(workspace)
        rows.profile(env={"MODEL": "large", "N": 3, "ANDON_TASK": "t_evil"})
        run = rows.claimed(project="demo", tenant="home")
        made = prepared(run)
        folder = home / "agents" / run.agent
        token = made.env["ANDON_TOKEN"]
        assert made.env == {
            "MODEL": "large",
            "N": "3",
            "ANDON_TASK": run.task_id,
            "ANDON_RUN": f"{run.task_id}/1",
            "ANDON_WORKSPACE": str(home / "workspaces" / run.task_id),
            "ANDON_TENANT": "home",
            "ANDON_PROJECT": "demo",
            "ANDON_URL": settings.ANDON_URL,
            "ANDON_TOKEN": token,
            "ANDON_CONTEXT": str(folder / "context.md"),
            "ANDON_SIDECAR": str(folder / "managed-spawn.json"),
            "ANDON_CLI": str(profiles.CLI),
        }
        assert rows.fresh_run(run).workspace == made.cwd

    def test_its_token_speaks_for_the_run_and_stands_nowhere(self, home: Path, workspace: Path) -> None:
        make_project(workspace)
        run = rows.claimed(project="demo")
        raw = prepared(run).env["ANDON_TOKEN"]
        who = access.identify_token(raw, now=timezone.now(), address="")
        assert (who.run, who.name, who.project, who.role) == (str(run), f"run:{run}", "demo", Role.OPERATOR)
        whole_database()
        from django.apps import apps

        for model in apps.get_models():
            assert raw not in repr(list(model._default_manager.values_list())), model
        for file in (home / "agents").rglob("*"):
            assert file.is_dir() or raw not in file.read_text()

    def test_made_again_after_a_crash_the_first_token_is_dead(self) -> None:
        run = rows.claimed()
        first, second = prepared(run), prepared(run)
        assert first.argv == second.argv
        live = ApiToken.objects.get(revoked_at=None)
        assert live.run == str(run)
        assert access.identify_token(second.env["ANDON_TOKEN"], now=timezone.now(), address="").token_id == live.pk
        with pytest.raises(Unauthenticated):
            access.identify_token(first.env["ANDON_TOKEN"], now=timezone.now(), address="")
        # Its task tells of its attempts; a token of each would only say it again.
        assert not Event.objects.filter(kind__startswith="token.").exists()

    def test_its_context(self, home: Path, workspace: Path) -> None:
        project = make_project(workspace)
        processes.healthy(project, "web")
        parent = rows.task("The shed")
        lifecycle.complete(parent, result="It stands.", by=ANNA, now=timezone.now())
        open_parent = rows.task("The open one")
        task = rows.task("Paint it", body="Red, please.", parents=[parent.pk, open_parent.pk], project="demo")
        lifecycle.move_to(task, Status.READY, by=ANNA, now=timezone.now())
        for n in range(32):
            lifecycle.comment(task, f"Remark {n}.", author="Anna", by=ANNA, now=timezone.now())
        first = rows.started(task)
        rows.ended(first, 3, tail="out of paint")
        run = rows.claimed(task)
        made = prepared(run)
        file = Path(made.env["ANDON_CONTEXT"])
        text = file.read_text()
        for each in (
            "Paint it", "Red, please.", "It stands.", "Remark 31.", "Remark 2.", "out of paint", made.cwd, "web"
        ):  # fmt: skip
            assert each in text, each
        assert "The open one" not in text
        assert "Remark 1." not in text
        assert text.index("Remark 2.") < text.index("Remark 31.")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_of_its_parents_what_the_newest_that_are_done_left(self, now: datetime) -> None:
        parents = [rows.task(f"Step {n}") for n in range(32)]
        for n, parent in enumerate(parents):
            lifecycle.complete(parent, result="x" * 20_000, by=ANNA, now=now + n * timedelta(seconds=1))
        given_up = lifecycle.archive(rows.task("Given up"), by=ANNA, now=now)
        task = rows.task("Paint it", parents=[each.pk for each in (*parents, given_up)])
        brief = workers.brief_of(task, None, workspace="", cli="", sidecar="")
        assert {each.id for each in brief.parents} == {each.pk for each in parents[2:]}
        assert max(len(each.result) for each in brief.parents) < 10_000
        assert "(Cut: these are its first 4096 bytes.)" in context.render(brief)

    def test_a_brief_for_nobody_who_works(self, django_assert_max_num_queries: Any) -> None:
        task = rows.task("Paint it")
        with django_assert_max_num_queries(5):
            brief = workers.brief_of(task, None, workspace="", cli="", sidecar="")
        assert (brief.attempt, brief.services_block, brief.title) == (0, "", "Paint it")


class TestPlanted:
    """What an earlier attempt may have left in the place of what is written."""

    def test_a_link_is_replaced_and_never_followed(self, home: Path, tmp_path: Path) -> None:
        run = rows.claimed()
        folder = home / "agents" / run.agent
        folder.mkdir(parents=True)
        target = tmp_path / "precious"
        target.write_text("mine")
        (folder / "context.md").symlink_to(target)
        prepared(run)
        assert target.read_text() == "mine"
        assert not (folder / "context.md").is_symlink()
        assert run.task_id in (folder / "context.md").read_text()

    @pytest.mark.parametrize("place", ["agents", "agents/{agent}"])
    def test_a_folder_that_is_a_link_is_not_entered(self, place: str, home: Path, tmp_path: Path) -> None:
        run = rows.claimed()
        away = tmp_path / "away"
        away.mkdir()
        (away / "context.md").write_text("mine")
        link = home / place.format(agent=run.agent)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(away)
        with pytest.raises(CannotStart, match="its context file cannot be written: "):
            prepared(run)
        assert [each.name for each in away.iterdir()] == ["context.md"]
        assert (away / "context.md").read_text() == "mine"

    def test_a_folder_in_place_of_the_file(self, home: Path) -> None:
        run = rows.claimed()
        (home / "agents" / run.agent / "context.md").mkdir(parents=True)
        with pytest.raises(CannotStart, match="its context file cannot be written: "):
            prepared(run)


class TestCannotStart:
    def test_a_run_that_is_over(self) -> None:
        run = rows.claimed()
        process = rows.process_of(run)
        lifecycle.archive(run.task, by=ANNA, now=timezone.now())
        with pytest.raises(CannotStart, match=r"^its run is over$"):
            workers.prepare(process)

    def test_one_that_ends_meanwhile_gets_no_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = rows.claimed()
        real = workers._write

        def write(*words: Any) -> Path:
            lifecycle.archive(run.task, by=ANNA, now=timezone.now())
            return real(*words)

        monkeypatch.setattr(workers, "_write", write)
        with pytest.raises(CannotStart, match="is over"):
            prepared(run)
        assert not ApiToken.objects.filter(revoked_at=None).exists()
        with pytest.raises(Conflict, match="superseded"):
            workers.issue_token(run, run.task, by=SWEEP, now=timezone.now())

    def test_whose_tokens_name_is_taken(self) -> None:
        run = rows.claimed()
        access.issue(f"run {run}", role=Role.VIEWER, by=ANNA, now=timezone.now())
        with pytest.raises(CannotStart, match="already called"):
            prepared(run)

    def test_whose_profile_is_gone(self) -> None:
        run = rows.claimed()
        Profile.objects.all().delete()
        with pytest.raises(CannotStart, match=r"^there is no profile demo any more$"):
            prepared(run)

    def test_whose_workspace_cannot_be_made(self, tmp_path: Path) -> None:
        run = rows.claimed(workspace_kind="dir", workspace_path=str(tmp_path / "outside"))
        with pytest.raises(CannotStart, match=r"^workspace: "):
            prepared(run)

    def test_whose_disk_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = rows.claimed()

        def make(*words: Any, **about: Any) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(workspaces, "make", make)
        with pytest.raises(CannotStart, match=r"^workspace: No space left on device$"):
            prepared(run)
        monkeypatch.setattr(workspaces, "make", lambda *words, **about: (_ for _ in ()).throw(OSError("odd")))
        with pytest.raises(CannotStart, match=r"^workspace: odd$"):
            prepared(run)

    def test_whose_project_is_gone_has_no_repository(self, workspace: Path) -> None:
        make_project(workspace)
        run = rows.claimed(project="demo", workspace_kind="worktree")
        Project.objects.all().delete()
        with pytest.raises(CannotStart, match=r"^workspace: "):
            prepared(run)

    def test_the_supervisor_then_records_a_spawn_failure(self) -> None:
        """The reason reaches the task as it is, with its prefix."""
        run = rows.claimed()
        task = rows.not_started(run, "workspace: No space left on device")
        assert task.last_error == "workspace: No space left on device"


class TestSidecar:
    def test_only_its_host_can_tell(self, home: Path) -> None:
        run = rows.claimed()
        assert workers.has_sidecar(run) is False
        (home / "agents" / run.agent).mkdir(parents=True)
        file = home / "agents" / run.agent / "managed-spawn.json"
        file.write_text(json.dumps({}))
        assert workers.has_sidecar(run) is True
        file.unlink()
        file.symlink_to("/nowhere")
        assert workers.has_sidecar(run) is True
        run.host = "n2"
        file.unlink()
        assert workers.has_sidecar(run) is True
        assert workers.has_sidecar(rows.pulled()) is False


def test_the_worker_asks_for_it_when_it_starts_one() -> None:
    assert starting.prepare[Purpose.WORKER] is workers.prepare


def test_nothing_of_what_it_makes_stands_in_the_processs_row() -> None:
    rows.profile(env={"SECRET": "s3cret"})
    run = rows.claimed(rows.task("A title"))
    prepared(run)
    row = ManagedProcess.objects.get(pk=run.process_id)
    assert (row.env, "s3cret" in repr(row.__dict__), "A title" in repr(row.__dict__)) == ({}, False, False)


def test_who_acts_for_a_run() -> None:
    run = rows.pulled()
    who = workers.as_run(run)
    assert (who.name, who.run, who.via) == (f"run:{run}", str(run), as_run(run).via)
