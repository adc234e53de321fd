"""The demo projects are real, and the scripted agent really works on them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config import demo, demo_agent
from config.loop import Limits, run
from projects import git, ralph
from projects.usage import parse_record, result_envelope

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path):
    root = tmp_path / "workspace"
    demo.make_demo(root)
    return root


def stories(project):
    prd = ralph.find_prd(project)
    document = ralph.parse_prd(ralph.read_inside(project, prd, ralph.MAX_BYTES))
    assert not document.warnings
    return document.stories


def states(project):
    return {story.id: story.state.value for story in stories(project)}


def subjects(project):
    return git.run(["log", "--format=%s"], project).decode().splitlines()


def work(project, **options):
    """One turn of the scripted agent, as the loop would start it."""
    return subprocess.run(
        shlex.split(demo.agent(0)),
        cwd=project,
        input=b"Take a story.\n",
        capture_output=True,
        check=False,
        timeout=60,
        **options,
    )


class TestProjects:
    def test_greenhouse_has_everything_before_it(self, workspace):
        project = workspace / "greenhouse"
        assert ralph.find_prd(project) == Path("scripts/ralph/prd.json")
        assert set(states(project).values()) == {"pending"}
        assert len(stories(project)) == 6
        assert subjects(project) == ["A greenhouse that knows when it is cold"]
        assert git.run(["status", "--porcelain"], project) == b""

    def test_birdsong_is_under_way(self, workspace):
        project = workspace / "birdsong"
        assert ralph.find_prd(project) == Path(".ralph/prd.json")
        assert list(states(project).values()) == [*["passed"] * 3, "failed", "blocked", *["pending"] * 3]
        failed = next(story for story in stories(project) if story.failed)
        assert failed.failure_reason
        assert subjects(project)[0].startswith("feat: [US-003] ")
        assert len(subjects(project)) == 4
        assert git.run(["branch", "--show-current"], project) == b"ralph/dawn-chorus\n"

    @pytest.mark.parametrize("name", ["greenhouse", "birdsong"])
    def test_every_story_can_be_read(self, workspace, name):
        for story in stories(workspace / name):
            assert story.acceptance_criteria
            assert story.tags
        assert any(story.depends_on for story in stories(workspace / name))

    @pytest.mark.parametrize("name", ["greenhouse", "birdsong"])
    def test_progress_has_patterns_on_top(self, workspace, name):
        prd = ralph.find_prd(workspace / name)
        progress = (workspace / name / prd).with_name("progress.txt").read_text()
        assert "## Codebase Patterns" in progress.splitlines()[:5]

    @pytest.mark.parametrize("name", ["greenhouse", "birdsong"])
    def test_their_own_tests_pass(self, workspace, name):
        done = subprocess.run(
            [sys.executable, "-m", "unittest", "discover"], cwd=workspace / name, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_the_owners_git_settings_have_no_say(self, tmp_path, monkeypatch):
        (tmp_path / "gitconfig").write_text("[commit]\n gpgSign = true\n[user]\n name = Somebody\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "gitconfig").rename(tmp_path / ".gitconfig")
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
        [greenhouse, _] = demo.make_demo(tmp_path / "workspace")
        assert git.run(["log", "--format=%an <%ae> %cn"], greenhouse) == b"Andon Demo <demo@localhost> Andon Demo\n"

    def test_again_changes_nothing_and_says_so(self, workspace):
        (workspace / "greenhouse" / "mine.txt").write_text("mine")
        before = git.run(["rev-parse", "HEAD"], workspace / "birdsong")
        lines = []
        assert demo.make_demo(workspace, lines.append) == [workspace / "greenhouse", workspace / "birdsong"]
        assert len(lines) == 2
        assert all("left as it is" in line for line in lines)
        assert (workspace / "greenhouse" / "mine.txt").read_text() == "mine"
        assert git.run(["rev-parse", "HEAD"], workspace / "birdsong") == before

    def test_what_is_missing_is_made(self, workspace):
        (workspace / "greenhouse").rename(workspace / "old")
        lines = []
        demo.make_demo(workspace, lines.append)
        assert "made" in lines[0]
        assert "6 stories, 0 passed" in lines[0]
        assert "left as it is" in lines[1]

    def test_a_failure_leaves_nothing_half_made(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise git.GitError(["commit"], 1, "no")

        monkeypatch.setattr(git, "run", fail)
        with pytest.raises(git.GitError):
            demo.make_demo(tmp_path)
        assert os.listdir(tmp_path) == []


class TestAgent:
    def test_one_story(self, workspace):
        project = workspace / "greenhouse"
        done = work(project)
        assert done.returncode == 0, done.stderr
        assert states(project)["US-001"] == "passed"
        assert "def average" in (project / "greenhouse/sensors.py").read_text()
        assert subjects(project)[0] == "feat: [US-001] Average several readings"
        assert git.run(["branch", "--show-current"], project) == b"ralph/first-season\n"
        assert git.run(["log", "-1", "--format=%an"], project) == b"Demo Agent\n"
        assert [h.story_id for h in ralph.progress_headings((project / "scripts/ralph/progress.txt").read_text())] == [
            "US-001"
        ]
        bill = parse_record(result_envelope(done.stdout))
        assert 0 < bill.cost < 2
        assert bill.output_tokens
        assert bill.session_id
        assert demo_agent.PROMISE.encode() not in done.stdout

    def test_the_flip_comes_after_the_commit(self, workspace):
        project = workspace / "greenhouse"
        work(project)
        assert b'"passes": true' not in git.run(["show", "HEAD:scripts/ralph/prd.json"], project)

    def test_stories_wait_for_others(self):
        stories = [
            {"id": "A", "priority": 1, "dependsOn": ["B"]},
            {"id": "B", "priority": 3},
            {"id": "C", "priority": 2, "failed": True},
        ]
        assert demo_agent.next_story(stories)["id"] == "B"
        assert demo_agent.next_story([*stories[:1], {"id": "B", "priority": 1, "blocked": True}]) is None

    def test_every_demo_story_has_real_code(self, workspace):
        open_stories = [
            story.title
            for name in ("greenhouse", "birdsong")
            for story in stories(workspace / name)
            if story.state.value == "pending"
        ]
        assert sorted(open_stories) == sorted(demo_agent.EDITS)
        for path, code in demo_agent.EDITS.values():
            compile(code, path, "exec")

    def test_broken_tests_are_not_committed(self, workspace):
        project = workspace / "greenhouse"
        (project / "tests" / "test_climate.py").write_text("raise SystemError\n")
        assert work(project).returncode != 0
        assert len(subjects(project)) == 1
        assert states(project)["US-001"] == "pending"

    def test_elsewhere_it_refuses(self, tmp_path):
        done = work(tmp_path)
        assert done.returncode == 1
        assert b"not a demo project" in done.stderr


class TestLoop:
    @pytest.mark.parametrize(("name", "iterations"), [("greenhouse", 6), ("birdsong", 3)])
    def test_until_all_is_closed(self, workspace, name, iterations):
        project = workspace / name
        lines = []
        agent = shlex.split(demo.agent(0.01))
        assert run(project, agent, limits=Limits(iterations=50), say=lines.append) == 0
        assert "completion_promise" in lines[-1]
        assert sum(subject.startswith("feat: ") for subject in subjects(project)) >= iterations
        assert "pending" not in states(project).values()
        folder = project / ralph.find_prd(project).parent
        assert len(list((folder / "logs").iterdir())) == iterations
        assert len((folder / "usage.jsonl").read_text().splitlines()) == iterations
        tracked = git.run(["ls-files"], project).decode()
        assert not any(name in tracked for name in ("usage.jsonl", "iteration-", "history.jsonl", ".pid"))

    def test_argv(self, workspace):
        argv = demo.loop_argv(workspace / "greenhouse", 0.5)
        assert argv[:4] == [sys.executable, str(ROOT / "manage.py"), "loop", str(workspace / "greenhouse")]
        assert argv[argv.index("--max") + 1] == "50"
        agent = shlex.split(argv[argv.index("--agent") + 1])
        assert agent == [sys.executable, str(ROOT / "config/demo_agent.py"), "--pace", "0.5"]


class TestCommandLine:
    def demo(self, tmp_path, *args):
        env = {name: value for name, value in os.environ.items() if not name.startswith("ANDON_")}
        return subprocess.run(
            [sys.executable, ROOT / "manage.py", "demo", *args],
            env={**env, "ANDON_HOME": str(tmp_path / "home"), "ANDON_WORKSPACE": str(tmp_path / "default")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def test_in_the_first_workspace(self, tmp_path):
        done = self.demo(tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "default/greenhouse/.git").is_dir()
        assert "manage.py loop" in done.stdout
        assert "does not look here" not in done.stdout

    def test_elsewhere_and_run(self, tmp_path):
        done = self.demo(tmp_path, str(tmp_path / "here"), "--run", "--pace", "0.01")
        assert done.returncode == 0, done.stderr
        assert "completion_promise" in done.stdout
        assert f"ANDON_WORKSPACE={tmp_path / 'here'}" in done.stdout
        assert set(states(tmp_path / "here/greenhouse").values()) == {"passed"}

    def test_a_place_that_cannot_be_used(self, tmp_path):
        (tmp_path / "file").write_text("")
        done = self.demo(tmp_path, str(tmp_path / "file"))
        assert done.returncode == 1
        assert "cannot be made" in done.stderr
        assert "Traceback" not in done.stderr

    def test_help(self, tmp_path):
        done = self.demo(tmp_path, "--help")
        assert done.returncode == 0
        assert "scripted agent" in done.stdout
        assert "--pace" in done.stdout
