"""The loop runner with real agents: small shell scripts that do what agents do, and what they should not."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.loop import Limits, WrongUsage, answer, run
from config.loop.commits import Commits
from config.management.commands.loop import Command
from projects import budget, git, history, ralph
from projects.usage import parse_record

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]
PROMISE = "<promise>COMPLETE</promise>"
RUNNER = """
import json, sys
from pathlib import Path
from config.loop import Limits, run
given = json.loads(sys.argv[1])
sys.exit(run(Path(given["root"]), given["argv"], limits=Limits(**given["limits"])))
"""
PASS_ONE = """
python3 - <<'END'
import json, pathlib
path = pathlib.Path("scripts/ralph/prd.json")
document = json.loads(path.read_text())
next(story for story in document["userStories"] if not story["passes"])["passes"] = True
path.write_text(json.dumps(document))
END
"""


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


def is_gone(pid):
    try:
        return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def envelope(**fields):
    return json.dumps({"type": "result", "is_error": False, "session_id": "s1", "result": "ok", **fields})


class Project:
    """A project with stories, and what a loop left in it."""

    def __init__(self, root: Path, stories: int = 2) -> None:
        self.root = root
        self.folder = root / "scripts" / "ralph"
        self.folder.mkdir(parents=True)
        document = [
            {"id": f"US-{n:03}", "title": f"Story {n}", "priority": n, "passes": False} for n in range(1, stories + 1)
        ]
        (self.folder / "prd.json").write_text(json.dumps({"userStories": document}))
        self.lines: list[str] = []
        self.naps: list[float] = []

    def agent(self, script: str) -> list[str]:
        return ["sh", "-c", script]

    def run(self, script: str, *, resume: bool = False, **limits) -> int:
        return run(
            self.root,
            self.agent(script),
            limits=Limits(**limits),
            resume=resume,
            say=self.lines.append,
            sleep=self.naps.append,
        )

    def start(self, script: str, **limits) -> subprocess.Popen:
        given = {"root": str(self.root), "argv": self.agent(script), "limits": limits}
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, json.dumps(given)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid_file(self) -> Path:
        return self.folder / ".ralph.pid"

    def log(self, number: int) -> str:
        return (self.folder / "logs" / f"iteration-{number}.log").read_text()

    def logs(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "logs").iterdir())

    def usage(self) -> list[dict]:
        path = self.folder / "usage.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def history(self) -> list[dict]:
        path = self.root / ".ralph" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self) -> list[str]:
        return [event["data"]["run"] for event in self.history()]

    def record(self, kind: str, *, run: str | None, **fields) -> None:
        data = None if run is None else {"run": run}
        history.append(self.root / ".ralph" / "history.jsonl", kind, fields, data=data, at=datetime.now(UTC))

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def kinds(self) -> list[str]:
        return [event["type"]["kind"] for event in self.history()]

    def reason(self) -> str:
        return self.history()[-1]["type"]["reason"]

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def budget(self, text: str) -> None:
        (self.root / ".ralph").mkdir(exist_ok=True)
        (self.root / ".ralph" / "budget.json").write_text(text)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "demo")


@pytest.fixture
def runners():
    """Processes that a test started; none outlives it."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


class TestWhatItLeaves:
    def test_log_usage_and_history(self, project):
        said = envelope(total_cost_usd=0.25, num_turns=3, model="m", usage={"input_tokens": 7})
        assert project.run(f"echo working; echo oops >&2; echo '{said}'", iterations=1) == 0
        assert project.log(1) == f"working\noops\n{said}\n"

        [record] = project.usage()
        assert parse_record(record).cost == Decimal("0.25")
        assert record | {"ts": 0, "duration_ms": 0, "run": 0} == {
            "ts": 0,
            "project": "demo",
            "story": "US-001",
            "iteration": 1,
            "total_cost_usd": 0.25,
            "input_tokens": 7,
            "duration_ms": 0,
            "num_turns": 3,
            "exit_code": 0,
            "is_error": False,
            "session_id": "s1",
            "model": "m",
            "run": 0,
        }

        started, began, completed, ended = project.history()
        assert started["type"]["kind"] == "loop_started"
        assert "scripts/ralph/prd.json" in started["type"]["prompt"]
        assert began["type"] == {"kind": "iteration_started", "iteration": 1}
        assert completed["type"] == {"kind": "iteration_completed", "iteration": 1, "success": True}
        assert ended["type"] == {"kind": "loop_completed", "reason": "max_iterations"}
        assert {event["data"]["run"] for event in project.history()} == {record["run"]}
        assert started["data"]["pid"] == os.getpid()
        assert began["data"]["story"] == "US-001"

    def test_an_unknown_cost_is_not_written(self, project):
        project.run("echo hello", iterations=1)
        assert "total_cost_usd" not in project.usage()[0]
        assert "1 of unknown cost" in project.lines[-1]

    def test_numbers_go_on_after_the_highest_log(self, project):
        (project.folder / "logs").mkdir()
        for name in ("iteration-9.log", "iteration-10.log", "iteration-x.log"):
            (project.folder / "logs" / name).touch()
        project.run("echo hello", iterations=2)
        assert project.log(11) == project.log(12) == "hello\n"
        assert [record["iteration"] for record in project.usage()] == [11, 12]

    def test_every_line_is_one_line(self, project):
        prd = {"userStories": [{"id": "US-1", "title": "a\nb\x1b[2Jc", "passes": False}]}
        (project.folder / "prd.json").write_text(json.dumps(prd))
        runner = project.start("exit 0", iterations=1)
        out, _ = runner.communicate(timeout=10)
        assert all(line.startswith("loop: ") for line in out.splitlines())
        assert "\x1b" not in out

    def test_logs_that_lead_elsewhere_are_not_written(self, project, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (project.folder / "logs").symlink_to(tmp_path / "elsewhere")
        assert project.run("echo hello", failures=2) == 0
        assert project.reason() == "consecutive_failures"
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_a_history_that_cannot_be_written_is_told(self, project):
        (project.root / ".ralph").write_text("in the way")
        assert project.run("echo hello", iterations=1) == 0
        assert any("loop_started was not recorded" in line for line in project.lines)
        assert len(project.usage()) == 1

    def test_a_prd_that_is_being_written_does_not_end_it(self, project):
        script = "echo '{\"userSto' > scripts/ralph/prd.json"
        assert project.run(script, iterations=2) == 0
        assert any("cannot be read" in line for line in project.lines)
        assert project.reason() == "max_iterations"

    def test_a_project_that_vanishes(self, project):
        assert project.run('rm -rf "$PWD"') == 1
        assert any("workspace_gone" in line for line in project.lines)


class TestTheAgent:
    def test_no_shell_and_its_own_session(self, project, monkeypatch):
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "config.settings")
        monkeypatch.setenv("ANDON_SECRET_KEY", "x" * 50)
        code = (
            "import os, sys, json; print(json.dumps([sys.argv[1:], os.getcwd(), os.getsid(0) == os.getpid(),"
            " 'DJANGO_SETTINGS_MODULE' in os.environ, 'ANDON_SECRET_KEY' in os.environ]))"
        )
        argv = [sys.executable, "-c", code, "$HOME; *", "a b"]
        run(project.root, argv, limits=Limits(iterations=1), say=project.lines.append)
        assert json.loads(project.log(1)) == [["$HOME; *", "a b"], str(project.root), True, False, False]

    def test_signals_work_in_it_as_usual(self, project):
        project.run("grep -E 'Sig(Ign|Blk)' /proc/self/status", iterations=1)
        before = Path("/proc/self/status").read_text()
        ignored = int(before.partition("SigIgn:")[2].split()[0], 16)
        for line in project.log(1).splitlines():
            # SIGPIPE is what Python itself ignores and gives back.
            assert int(line.split()[1], 16) & ~ignored == 0

    def test_one_that_reads_nothing_and_a_long_prompt(self, project):
        (project.folder / "prompt.md").write_text("x" * 1_000_000)
        assert project.run("exit 0", iterations=1) == 0

    def test_one_that_leaves_a_child_with_its_output(self, project):
        began = time.monotonic()
        project.run("sleep 30 & echo $!", iterations=1)
        assert time.monotonic() - began < 5
        os.kill(int(project.log(1)), signal.SIGKILL)

    def test_one_that_prints_a_lot(self, project):
        project.run(f"head -c 20000000 /dev/zero | tr '\\0' x; echo; echo '{PROMISE}'", iterations=1)
        assert project.reason() == "completion_promise"

    def test_one_that_goes_away_between_iterations(self, project, tmp_path):
        script = tmp_path / "agent"
        script.write_text("#!/bin/sh\nrm $0\n")
        script.chmod(0o755)
        run(project.root, [str(script)], limits=Limits(iterations=2), say=project.lines.append)
        assert [record["exit_code"] for record in project.usage()] == [0, 127]
        assert "cannot be started" in project.log(2)

    def test_it_knows_where_it_is(self, project, monkeypatch):
        monkeypatch.setenv("PWD", "/")
        here = os.getcwd()
        run(project.root, ["env"], limits=Limits(iterations=1), say=project.lines.append)
        assert f"PWD={project.root}\n" in project.log(1)
        assert os.getcwd() == here

    def test_one_given_relative_to_the_project(self, project):
        (project.root / "agent.sh").write_text("#!/bin/sh\necho here\n")
        (project.root / "agent.sh").chmod(0o755)
        run(project.root, ["./agent.sh"], limits=Limits(iterations=1), say=project.lines.append)
        assert project.log(1) == "here\n"


class TestPrompt:
    def test_the_built_in_one(self, project):
        project.run("cat", iterations=1)
        assert "scripts/ralph/progress.txt" in project.log(1)
        assert "dependsOn" in project.log(1)
        assert project.reason() == "max_iterations"

    @pytest.mark.parametrize("name", ["prompt.md", "PROMPT.md"])
    def test_the_projects_own(self, project, name):
        (project.folder / name).write_text("Do it.\n")
        project.run("cat", iterations=1)
        assert project.log(1) == "Do it.\n"

    def test_a_file_that_was_named(self, project, tmp_path):
        (project.folder / "prompt.md").write_text("Not this.\n")
        (tmp_path / "mine.txt").write_text("This.\n")
        run(
            project.root,
            project.agent("cat"),
            limits=Limits(iterations=1),
            prompt_file=Path(os.path.relpath(tmp_path / "mine.txt")),
            say=project.lines.append,
        )
        assert project.log(1) == "This.\n"

    def test_edited_and_removed_under_way(self, project):
        prompt = project.folder / "prompt.md"
        prompt.write_text("first\n")
        project.run(f"cat; echo second > {prompt}", iterations=2)
        assert (project.log(1), project.log(2)) == ("first\n", "second\n")


class TestPromise:
    @pytest.mark.parametrize(
        "text",
        [
            PROMISE,
            f"done\n{PROMISE}\nbye",
            f"  {PROMISE} \t\r\n",
            f"\x1b[32m{PROMISE}\x1b[0m",
            f"```\ncode\n```\n{PROMISE}\n",
            f"````\n```\n````\n{PROMISE}\n",
        ],
    )
    def test_on_a_line_of_its_own(self, text):
        assert answer.has_promise(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            f"I will print {PROMISE} at the end",
            f"{PROMISE}.",
            f'"{PROMISE}"',
            f"`{PROMISE}`",
            f"> {PROMISE}",
            f"- {PROMISE}",
            f"    {PROMISE}",
            f"\t{PROMISE}",
            f"```\n{PROMISE}\n```",
            f"~~~text\n```\n{PROMISE}\n~~~",
            f"{PROMISE} {PROMISE}",
            "<promise>complete</promise>",
            "<promise>\nCOMPLETE\n</promise>",
        ],
    )
    def test_quoted_or_otherwise_not_meant(self, text):
        assert not answer.has_promise(text)

    @given(st.text())
    def test_any_text(self, text):
        assert not answer.has_promise(text)
        assert answer.has_promise(f"{text.replace('`', '').replace('~', '')}\n{PROMISE}")

    def test_ends_the_loop(self, project):
        assert project.run(f"echo; echo ' {PROMISE}'", iterations=5) == 0
        assert project.reason() == "completion_promise"
        assert len(project.usage()) == 1

    def test_quoted_it_does_not(self, project):
        project.run(f"echo 'say {PROMISE} when done'; echo '> {PROMISE}'", iterations=2)
        assert project.reason() == "max_iterations"

    def test_in_the_envelope(self, project):
        (project.root / "said").write_text(envelope(result=f"All done.\n\n{PROMISE}") + "\n")
        project.run("cat said", iterations=5)
        assert project.reason() == "completion_promise"

    def test_in_a_sentence_of_the_envelope(self, project):
        (project.root / "said").write_text(envelope(result=f"I shall say {PROMISE} then.") + "\n")
        project.run("cat said", iterations=2)
        assert project.reason() == "max_iterations"

    def test_an_agent_that_repeats_its_prompt_promises_nothing(self, project):
        (project.folder / "prompt.md").write_text(f"When done print\n{PROMISE}\nand end.\n")
        project.run("cat", iterations=2)
        assert project.reason() == "max_iterations"

    @pytest.mark.parametrize(
        ("output", "exit_code", "was_cut"),
        [
            (PROMISE, 1, False),
            (PROMISE, 0, True),
            (f'{PROMISE}\n{{"type": "result", "is_error": true}}', 0, False),
        ],
    )
    def test_a_failed_answer_promises_nothing(self, output, exit_code, was_cut):
        said = answer.judge(output.encode(), prompt=b"", exit_code=exit_code, was_cut=was_cut)
        assert said.failed
        assert not said.promised

    def test_all_stories_passed_is_as_good(self, project):
        assert project.run(PASS_ONE, iterations=9) == 0
        assert project.reason() == "completion_promise"
        assert [record["story"] for record in project.usage()] == ["US-001", "US-002"]

    def test_nothing_is_started_when_all_have_passed(self, project):
        project.run(PASS_ONE, iterations=9)
        assert project.run("touch started", iterations=9) == 0
        assert not project.has("started")
        assert project.kinds()[-2:] == ["loop_started", "loop_completed"]


class TestLimits:
    def test_iterations(self, project):
        assert project.run("exit 0", iterations=3) == 0
        assert project.reason() == "max_iterations"
        assert len(project.usage()) == 3
        assert "max_iterations: the limit of iterations is reached: 3 of 3" in project.lines[-1]

    def test_cost(self, project):
        said = envelope(total_cost_usd=0.4)
        assert project.run(f"echo '{said}'", iterations=9, cost=Decimal(1)) == 0
        assert project.reason() == "max_cost"
        assert len(project.usage()) == 3
        assert "max_cost: the limit of cost is reached: $1.20 of $1.00" in project.lines[-1]

    def test_a_cost_that_is_never_told_is_warned_of_once(self, project):
        project.run("exit 0", iterations=3, cost=Decimal(1))
        assert sum("reports no cost" in line for line in project.lines) == 1

    def test_an_absurd_bill_is_told_and_not_counted(self, project):
        said = envelope(total_cost_usd=-5)
        project.run(f"echo '{said}'", iterations=1, cost=Decimal(1))
        assert any("total_cost_usd is negative" in line for line in project.lines)
        assert "total_cost_usd" not in project.usage()[0]

    @pytest.mark.parametrize("script", ["exit 3", f"echo '{envelope(is_error=True)}'"])
    def test_failures_one_after_another(self, project, script):
        assert project.run(script, iterations=9) == 0
        assert project.reason() == "consecutive_failures"
        assert len(project.usage()) == 5
        assert all(record["is_error"] for record in project.usage())
        assert "failed one after another: 5 " in project.lines[-1]

    def test_a_success_between_starts_the_count_again(self, project):
        script = "n=$(ls scripts/ralph/logs | wc -l); [ $((n % 5)) = 0 ]"
        project.run(script, iterations=12)
        assert project.reason() == "max_iterations"

    def test_time(self, project):
        began = time.monotonic()
        project.run("echo $$; sleep 60 & wait", iterations=1, story_timeout_s=0.3)
        assert time.monotonic() - began < 5
        [record] = project.usage()
        assert (record["exit_code"], record["subtype"], record["is_error"]) == (-15, "timeout", True)
        assert project.history()[2]["data"]["why"] == "timeout"
        assert not project.history()[2]["type"]["success"]

    def test_time_with_an_agent_and_a_child_that_ignore_term(self, project):
        script = (
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.1; done' & while :; do sleep 0.1; done"
        )
        began = time.monotonic()
        project.run(script, iterations=1, story_timeout_s=0.3, kill_after_s=0.3)
        assert 0.6 <= time.monotonic() - began < 5
        assert project.usage()[0]["exit_code"] == -9
        wait_for(lambda: is_gone(int(project.log(1))))

    def test_a_child_that_outlives_its_agent_is_killed_too(self, project):
        script = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.1; done' & sleep 60"
        project.run(script, iterations=1, story_timeout_s=0.3, kill_after_s=0.3)
        wait_for(lambda: is_gone(int(project.log(1).split()[0])))

    def test_an_agent_that_ends_well_on_term_is_given_the_time(self, project):
        project.run("trap 'sleep 0.3; echo saved; exit 0' TERM; sleep 60 & wait", iterations=1, story_timeout_s=0.2)
        assert project.log(1) == "saved\n"
        assert project.usage()[0]["is_error"]


class TestBudget:
    def writes(self, text):
        return f"mkdir -p .ralph; echo '{text}' > .ralph/budget.json"

    def test_is_read_before_each_iteration(self, project):
        script = "mkdir -p .ralph; echo '{\"max_iterations\": 2}' > .ralph/budget.json"
        project.run(script, iterations=9)
        assert project.reason() == "max_iterations"
        assert len(project.usage()) == 2

    def test_may_allow_more(self, project):
        project.run(self.writes('{"max_iterations": 3}'), iterations=1)
        assert len(project.usage()) == 3

    def test_of_cost(self, project):
        half, paid = '{"max_cost_usd": 0.5}', f"echo '{envelope(total_cost_usd=0.3)}'"
        project.run(f"{self.writes(half)}; {paid}", iterations=9)
        assert project.reason() == "max_cost"
        assert len(project.usage()) == 2
        assert "$0.60 of $0.50" in project.lines[-1]

    def test_what_was_written_is_what_holds(self, project):
        budget.write(project.root, 2, Decimal("0.125"))
        (project.root / ".ralph" / "budget.json").rename(project.root / "written")
        project.run(f"mv written .ralph/budget.json; echo '{envelope(total_cost_usd=0.125)}'", iterations=9)
        assert project.reason() == "max_cost"
        assert len(project.usage()) == 1

    @pytest.mark.parametrize("text", ['{"max_iterations": 0}', '{"max_cost_usd": 0}', "{"])
    def test_of_before_the_start_is_ignored(self, project, text):
        """Even one whose date lies ahead, as after a clock was set back."""
        project.budget(text)
        ahead = time.time() + 3600
        os.utime(project.root / ".ralph" / "budget.json", (ahead, ahead))
        project.run(f"echo '{envelope(total_cost_usd=0.3)}'", iterations=3, cost=Decimal("0.5"))
        assert project.reason() == "max_cost"
        assert len(project.usage()) == 2
        assert [line for line in project.lines if "budget.json" in line] == [
            ".ralph/budget.json is of before this start and is ignored until it is written again"
        ]

    def test_of_before_the_start_holds_once_it_is_written_again(self, project):
        text = '{"max_iterations": 2}'
        project.budget(text)
        project.run(self.writes(text), iterations=9)
        assert len(project.usage()) == 2

    def test_of_an_earlier_run_is_ignored_when_it_is_resumed(self, project):
        project.run(self.writes('{"max_iterations": 1}'), iterations=9)
        project.run("exit 0", resume=True, iterations=3)
        assert len(project.usage()) == 3

    def test_zero_ends_it(self, project):
        project.run(self.writes('{"max_iterations": 0}'), iterations=9)
        assert len(project.usage()) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            '{"max_iterations": -1}',
            '{"max_iterations": true}',
            '{"max_cost_usd": NaN}',
            '{"max_cost_usd": 1' + "0" * 400 + "}",
            "\xff",
            "[" * 9999,
        ],
    )
    def test_nonsense_is_told_and_ignored(self, project, text):
        (project.root / "nonsense").write_text(text)
        project.run("mkdir -p .ralph; cp nonsense .ralph/budget.json", iterations=2)
        assert len(project.usage()) == 2
        assert any("budget.json" in line for line in project.lines)


class TestResume:
    PAID = f"echo '{envelope(total_cost_usd=0.4)}'"

    def test_goes_on_under_the_same_run(self, project):
        project.run(self.PAID, iterations=2)
        [first] = set(project.runs())
        assert project.run(self.PAID, resume=True, iterations=3) == 0
        assert set(project.runs()) == {first}
        assert {record["run"] for record in project.usage()} == {first}
        resumed = project.history()[-4]
        assert resumed["type"] == {"kind": "loop_resumed", "from_iteration": 2}
        assert resumed["data"] == {"run": first, "pid": os.getpid()}
        assert project.kinds().count("loop_started") == 1
        assert [record["iteration"] for record in project.usage()] == [1, 2, 3]
        assert project.said("used already: 2 iterations, $0.80")
        assert "3 of 3 (3 iterations, $1.20)" in project.lines[-1]

    def test_a_limit_that_is_used_up_starts_nothing(self, project):
        project.run(self.PAID, iterations=2)
        assert project.run("touch started", resume=True, iterations=2) == 0
        assert not project.has("started")
        assert project.kinds()[-2:] == ["loop_resumed", "loop_completed"]
        assert project.reason() == "max_iterations"

    def test_money_counts_too(self, project):
        project.run(self.PAID, iterations=2, cost=Decimal(1))
        project.run(self.PAID, resume=True, iterations=9, cost=Decimal(1))
        assert project.reason() == "max_cost"
        assert len(project.usage()) == 3

    def test_the_number_is_of_the_log_and_the_count_of_the_run(self, project):
        (project.folder / "logs").mkdir()
        (project.folder / "logs" / "iteration-7.log").touch()
        project.run("exit 0", iterations=2)
        project.run("exit 0", resume=True, iterations=3)
        assert project.history()[-4]["type"] == {"kind": "loop_resumed", "from_iteration": 9}
        assert project.logs()[:1] == ["iteration-10.log"]
        assert len(project.usage()) == 3

    def test_twice(self, project):
        for most in (1, 2, 3):
            project.run(self.PAID, resume=True, iterations=most)
        assert len(set(project.runs())) == 1
        assert project.kinds().count("loop_resumed") == 2
        assert len(project.usage()) == 3
        assert project.said("used already: 2 iterations, $0.80")

    def test_only_the_last_run_counts(self, project):
        project.run(self.PAID, iterations=3)
        project.run(self.PAID, iterations=1)
        last = project.runs()[-1]
        project.run(self.PAID, resume=True, iterations=2)
        assert project.runs()[-1] == last
        assert len(project.usage()) == 5
        assert "(2 iterations, $0.80)" in project.lines[-1]

    def test_a_run_of_another_runner_is_passed_over(self, project):
        project.run("exit 0", iterations=1)
        ours = project.runs()[0]
        project.record("loop_started", run=None, prompt="theirs")
        project.record("iteration_completed", run=None, iteration=2, success=True)
        project.run("exit 0", resume=True, iterations=2)
        assert project.history()[-1]["data"]["run"] == ours
        assert len(project.usage()) == 2

    def test_after_kill_9(self, project, runners):
        first = project.start("if [ -e slow ]; then touch begun; sleep 60; fi; touch slow", iterations=9)
        runners.append(first)
        wait_for(lambda: project.has("begun"))
        first.kill()
        first.wait()
        wait_for(lambda: project.run("rm -f slow begun", resume=True, iterations=2) == 0)
        assert len(set(project.runs())) == 1
        assert project.kinds() == [
            *("loop_started", "iteration_started", "iteration_completed", "iteration_started"),
            *("loop_resumed", "iteration_started", "iteration_completed", "loop_completed"),
        ]

    def test_failures_are_counted_anew(self, project):
        project.run("exit 1", iterations=9, failures=2)
        project.run("exit 1", resume=True, iterations=9, failures=2)
        assert len(project.usage()) == 4
        assert project.reason() == "consecutive_failures"

    def test_a_cost_that_is_not_known(self, project):
        project.run("exit 0", iterations=1)
        project.run("exit 0", resume=True, iterations=2, cost=Decimal(1))
        assert "(2 iterations, $0.00, 2 of unknown cost)" in project.lines[-1]
        assert project.said("reports no cost")

    def test_nothing_was_run_before(self, project):
        assert project.run("exit 0", resume=True, iterations=1) == 0
        assert project.said("nothing to resume: no run of this runner is recorded here; this is a new run")
        assert project.kinds()[0] == "loop_started"

    def test_a_complete_run_is_over(self, project):
        project.run(f"echo '{PROMISE}'", iterations=5)
        before = project.runs()[-1]
        project.run("exit 0", resume=True, iterations=1)
        assert project.said(f"nothing to resume: run {before} is complete")
        assert project.runs()[-1] != before
        assert project.kinds().count("loop_started") == 2

    def test_a_run_that_was_complete_only_before_it_was_resumed_goes_on(self, project):
        project.record("loop_started", run="r1", prompt="")
        project.record("loop_completed", run="r1", reason="completion_promise")
        project.record("loop_resumed", run="r1", from_iteration=0)
        project.run("exit 0", resume=True, iterations=1)
        assert project.runs()[-1] == "r1"

    def test_bytes_of_any_kind_between(self, project):
        project.run(self.PAID, iterations=1)
        run_id = project.runs()[0].encode()
        for path in (project.root / ".ralph" / "history.jsonl", project.folder / "usage.jsonl"):
            with path.open("ab") as stream:
                stream.write(b"\xff\xfe\n[]\nnull\n{\n" + b"[" * 9999 + b'\n{"type": 1, "data": [], "ts": {}}\n')
                stream.write(b'{"type":{"kind":["loop_started"]},"data":{"run":"' + run_id + b'"}}\n')
                stream.write(b'{"type":{"kind":"loop_started"},"data":{"run":"../../etc"}}\n')
                stream.write(b'{"type":{"kind":"loop_started"},"data":{"run":["' + run_id + b'"]}}\n')
                stream.write(b'{"total_cost_usd": -7, "run": "' + run_id + b'"}\n')
                stream.write(b'{"total_cost_usd": 7, "story": "' + run_id + b'"}\n')
        project.run(self.PAID, resume=True, iterations=2)
        assert project.said("used already: 1 iteration, $0.40")
        assert "reached: 2 of 2 (2 iterations, $0.80)" in project.lines[-1]

    def test_files_that_lead_elsewhere_are_not_read(self, project, tmp_path):
        project.run(self.PAID, iterations=1)
        usage = project.folder / "usage.jsonl"
        usage.rename(tmp_path / "usage.jsonl")
        usage.symlink_to(tmp_path / "usage.jsonl")
        project.run("exit 0", resume=True, iterations=1)
        assert project.said("what the run has cost is not known")
        assert project.said("used already: 1 iteration, $0.00")
        kept = project.root / ".ralph" / "history.jsonl"
        kept.rename(tmp_path / "history.jsonl")
        kept.symlink_to(tmp_path / "history.jsonl")
        before = (tmp_path / "history.jsonl").read_bytes()
        project.run("exit 0", resume=True, iterations=1)
        assert project.said("nothing to resume: the history cannot be read")
        assert (tmp_path / "history.jsonl").read_bytes() == before

    def test_only_the_end_of_a_long_history_is_read(self, project, monkeypatch):
        project.run(self.PAID, iterations=1)
        monkeypatch.setattr("config.loop.earlier.MAX_BYTES", 300)
        project.run("exit 0", resume=True, iterations=1)
        assert project.said("nothing to resume: no run")


class TestCommits:
    COMMIT = "git -c user.name=A -c user.email=a@b commit -q --allow-empty -m"

    @pytest.fixture
    def repository(self, project):
        git.run(["init", "--quiet", "--initial-branch=main"], project.root)
        git.run(["commit", "--quiet", "--allow-empty", "--message=first"], project.root)
        return project

    def commits(self, project):
        """Return what each completed iteration recorded; None where it recorded nothing."""
        completed = [event for event in project.history() if event["type"]["kind"] == "iteration_completed"]
        return [event["data"].get("commits") for event in completed]

    def names(self, project, *args):
        return git.run(["rev-list", *args], project.root).decode().split()

    def test_of_each_iteration(self, repository):
        repository.run(f"[ -e one ] || {{ {self.COMMIT} a; {self.COMMIT} b; }}; touch one", iterations=2)
        assert self.commits(repository) == [self.names(repository, "--max-count=2", "HEAD"), []]
        newest = self.names(repository, "HEAD")[0]
        assert history.story_of_commit(repository.root, newest) == "US-001"

    def test_of_one_that_fails(self, repository):
        repository.run(f"{self.COMMIT} a; exit 1", iterations=1)
        assert self.commits(repository) == [self.names(repository, "--max-count=1", "HEAD")]

    def test_at_most_fifty_the_newest(self, repository):
        repository.run(f"for n in $(seq 53); do {self.COMMIT} $n; done", iterations=1)
        assert self.commits(repository) == [self.names(repository, "--max-count=50", "HEAD")]

    def test_a_new_branch_on_top(self, repository):
        repository.run(f"git checkout -q -b feature; {self.COMMIT} a", iterations=1)
        assert self.commits(repository) == [self.names(repository, "--max-count=1", "feature")]

    def test_a_merge_is_one_commit(self, repository):
        merge = "git -c user.name=A -c user.email=a@b merge -q --no-ff -m merge"
        repository.run(f"git checkout -q -b side; {self.COMMIT} a; git checkout -q main; {merge} side", iterations=1)
        assert self.commits(repository) == [self.names(repository, "--max-count=1", "main")]

    def test_an_older_branch_brings_none_of_its_own(self, repository):
        git.run(["branch", "side"], repository.root)
        git.run(["commit", "--quiet", "--allow-empty", "--message=second"], repository.root)
        merge = "git -c user.name=A -c user.email=a@b merge -q --no-ff -m merge"
        git.run(["checkout", "--quiet", "side"], repository.root)
        git.run(["commit", "--quiet", "--allow-empty", "--message=old"], repository.root)
        git.run(["checkout", "--quiet", "main"], repository.root)
        repository.run(f"git checkout -q side; {merge} main", iterations=1)
        assert self.commits(repository) == [self.names(repository, "--max-count=1", "side")]

    @pytest.mark.parametrize(
        "script",
        [
            "git checkout -q --orphan other; {commit} a",
            "{commit} a; git reset -q --hard HEAD~2",
            "{commit} a --amend",
            "git checkout -q --orphan empty",
            "rm -rf .git",
            "echo nonsense > .git/HEAD",
        ],
    )
    def test_nothing_is_recorded_when_head_went_elsewhere(self, repository, script):
        git.run(["commit", "--quiet", "--allow-empty", "--message=second"], repository.root)
        assert repository.run(script.format(commit=self.COMMIT), iterations=1) == 0
        assert self.commits(repository) == [None]
        assert "commits" not in repository.history()[2]["data"]

    def test_no_repository(self, project):
        git.run(["init", "--quiet"], project.root.parent)
        git.run(["commit", "--quiet", "--allow-empty", "--message=outer"], project.root.parent)
        project.run(f"{self.COMMIT} a", iterations=1)
        assert self.commits(project) == [None]

    def test_hooks_and_fetches_get_no_say(self, repository):
        ext = f"ext::touch {repository.root}/fetched"
        for name, value in {
            "core.repositoryFormatVersion": "1",
            "remote.away.url": ext,
            "remote.away.promisor": "true",
            "protocol.ext.allow": "always",
            "extensions.partialClone": "away",
            "core.fsmonitor": "touch watched; false",
        }.items():
            git.run(["config", name, value], repository.root)
        lost = "0123456789" * 4
        repository.run(f"echo {lost} > .git/refs/heads/main", iterations=1)
        assert self.commits(repository) == [None]
        assert not repository.has("fetched")
        assert not repository.has("watched")

    def test_git_that_hangs_takes_ten_seconds_in_all(self, repository, monkeypatch):
        asked = []

        def slow(args, cwd, *, timeout_s):
            asked.append(timeout_s)
            clock[0] += 4
            return b"0" * 39 + str(len(asked)).encode()

        clock = [0.0]
        monkeypatch.setattr("config.loop.commits.git.run", slow)
        monkeypatch.setattr("config.loop.commits.time", SimpleNamespace(monotonic=lambda: clock[0]))
        assert Commits(repository.root).made() is None
        assert asked == [10, 6, 2]


class TestQuota:
    WAITS_TWICE = (
        "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n; if [ $n -lt {times} ]; then {refusal}; fi; echo fine"
    )

    @pytest.mark.parametrize(
        "refusal",
        [
            "echo 'API Error: 429 rate_limit_error' >&2; exit 1",
            f"echo '{envelope(is_error=True, result='usage limit reached|1755900000')}'; exit 0",
        ],
    )
    def test_is_waited_out_and_counts_as_nothing(self, project, refusal):
        project.run(self.WAITS_TWICE.format(times=2, refusal=refusal), iterations=1, failures=1)
        assert project.naps == [60, 120]
        assert project.kinds() == [
            "loop_started",
            "iteration_started",
            "iteration_completed",
            "loop_completed",
        ]
        assert project.history()[2]["type"]["success"]
        assert project.logs() == ["iteration-1.log"]
        assert project.log(1).endswith("fine\n")
        assert len(project.usage()) == 1
        assert not project.usage()[0]["is_error"]

    def test_waits_at_most_half_an_hour(self, project):
        project.run(self.WAITS_TWICE.format(times=8, refusal="echo Overloaded; exit 1"), iterations=1)
        assert project.naps == [60, 120, 240, 480, 960, 1800, 1800, 1800]

    def test_what_a_refusal_cost_is_counted(self, project):
        refusal = f"echo '{envelope(is_error=True, result='quota', total_cost_usd=0.7)}'; exit 1"
        project.run(self.WAITS_TWICE.format(times=9, refusal=refusal), iterations=9, cost=Decimal(1))
        assert project.reason() == "max_cost"
        assert project.naps == [60, 120]
        assert all(parse_record(record).rate_limited for record in project.usage())

    def test_an_answer_about_quotas_is_not_one(self, project):
        said = envelope(result="I added a rate limit of 429 requests")
        project.run(f"echo '{said}'; exit 0", iterations=1)
        project.run("echo 'usage limit reached'; exit 0", iterations=1)
        assert project.naps == []

    def test_term_ends_the_waiting(self, project, runners):
        runner = project.start("echo 'usage limit reached'; exit 1")
        runners.append(runner)
        assert any("waiting 60 s" in line for line in runner.stdout)
        runner.terminate()
        assert runner.wait(5) == 0
        assert project.reason() == "stopped"
        assert not project.pid_file.exists()


class TestSignals:
    SLOW = "echo begun; touch begun; sleep 0.6; echo finished; touch finished"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_the_first_lets_the_iteration_finish(self, project, runners, number):
        runner = project.start(self.SLOW)
        runners.append(runner)
        wait_for(lambda: project.has("begun"))
        assert int(project.pid_file.read_text()) == runner.pid
        assert os.readlink(f"/proc/{runner.pid}/cwd") == str(project.root)
        runner.send_signal(number)
        out, _ = runner.communicate(timeout=10)
        assert runner.returncode == 0
        assert project.has("finished")
        assert f"{number.name}: stopping after this iteration" in out
        assert project.reason() == "stopped"
        assert len(project.usage()) == 1
        assert not project.pid_file.exists()

    def test_the_second_ends_the_agents_group(self, project, runners):
        runner = project.start("sh -c 'echo $$; touch begun; sleep 60' & wait")
        runners.append(runner)
        wait_for(lambda: project.has("begun"))
        runner.terminate()
        time.sleep(0.1)
        runner.terminate()
        assert runner.wait(5) == 143
        assert project.history()[-1]["type"] == {"kind": "loop_terminated", "signal": "SIGTERM"}
        assert project.history()[-2]["data"]["why"] == "terminated"
        assert project.usage()[0]["exit_code"] == -15
        assert is_gone(int(project.log(1)))
        assert not project.pid_file.exists()

    def test_the_second_kills_what_ignores_it(self, project, runners):
        runner = project.start("trap '' TERM; echo $$; touch begun; while :; do sleep 0.1; done", kill_after_s=0.3)
        runners.append(runner)
        wait_for(lambda: project.has("begun"))
        runner.send_signal(signal.SIGINT)
        time.sleep(0.1)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(5) == 130
        assert project.usage()[0]["exit_code"] == -9
        assert is_gone(int(project.log(1)))

    def test_handlers_are_given_back(self, project):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        descriptors = len(os.listdir("/proc/self/fd"))
        project.run("exit 0", iterations=1)
        assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_a_reader_that_went_away_does_not_end_it(self, project, runners):
        runner = project.start("sleep 0.2", iterations=3)
        runners.append(runner)
        runner.stdout.readline()
        runner.stdout.close()
        assert runner.wait(10) == 0
        assert project.reason() == "max_iterations"
        runner.stdout = None


class TestOneAtATime:
    def test_the_second_runner_is_sent_away(self, project, runners):
        first = project.start("touch begun; sleep 60")
        runners.append(first)
        wait_for(lambda: project.has("begun"))
        assert project.run("touch second") == 75
        assert "locked" in project.lines[-1]
        assert not project.has("second")
        assert int(project.pid_file.read_text()) == first.pid
        assert project.kinds() == ["loop_started", "iteration_started"]

    def test_two_at_once(self, project, runners):
        runners += [project.start("sleep 0.5", iterations=1) for _ in range(2)]
        assert sorted(runner.wait(10) for runner in runners) == [0, 75]
        assert len(project.usage()) == 1

    def test_kill_9_leaves_a_stale_pid_and_the_next_start_works(self, project, runners):
        first = project.start("echo $$; touch begun; sleep 60")
        runners.append(first)
        wait_for(lambda: project.has("begun"))
        first.kill()
        first.wait()
        assert int(project.pid_file.read_text()) == first.pid
        wait_for(lambda: is_gone(int(project.log(1))))
        assert project.run("echo again", iterations=1) == 0
        assert project.log(2) == "again\n"
        assert not project.pid_file.exists()

    def test_a_loop_that_takes_no_lock_is_respected(self, project, runners):
        other = subprocess.Popen(["sleep", "60"], cwd=project.folder)
        runners.append(other)
        project.pid_file.write_text(f"{other.pid}\n")
        assert project.run("touch second") == 75
        assert str(other.pid) in project.lines[-1]
        assert project.pid_file.read_text() == f"{other.pid}\n"

    @pytest.mark.parametrize("text", ["1\n", "", "none", "99999999"])
    def test_a_pid_of_nobody_is_replaced(self, project, text):
        project.pid_file.write_text(text)
        assert project.run("exit 0", iterations=1) == 0
        assert not project.pid_file.exists()

    def test_a_pid_that_lives_elsewhere_is_stale(self, project, runners, tmp_path):
        other = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
        runners.append(other)
        project.pid_file.write_text(str(other.pid))
        assert project.run("exit 0", iterations=1) == 0

    def test_a_pid_file_that_is_no_longer_ours_stays(self, project):
        project.run(f"echo 4711 > {project.pid_file}", iterations=1)
        assert project.pid_file.read_text() == "4711\n"

    def test_a_pid_file_that_leads_elsewhere_is_not_followed(self, project, tmp_path):
        (tmp_path / "precious").write_text("keep")
        project.pid_file.symlink_to(tmp_path / "precious")
        assert project.run("exit 0", iterations=1) == 0
        assert (tmp_path / "precious").read_text() == "keep"

    def test_the_lock_is_the_projects(self, project):
        with ralph.project_lock(project.root):
            assert project.run("touch second") == 75


class TestWrongUsage:
    def test_no_directory(self, tmp_path):
        with pytest.raises(WrongUsage, match="not a directory"):
            run(tmp_path / "gone", ["true"], limits=Limits())

    def test_no_prd(self, tmp_path):
        with pytest.raises(WrongUsage, match=r"no prd\.json"):
            run(tmp_path, ["true"], limits=Limits())
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("argv", [[], [""], ["no-such-agent"], ["./no-such-agent"], ["scripts/ralph/prd.json"]])
    def test_no_agent(self, project, argv):
        with pytest.raises(WrongUsage, match="agent"):
            run(project.root, argv, limits=Limits())

    def test_no_prompt(self, project, tmp_path):
        with pytest.raises(WrongUsage, match="prompt"):
            run(project.root, ["true"], limits=Limits(), prompt_file=tmp_path / "gone")


class TestCommandLine:
    @pytest.fixture
    def manage(self, tmp_path):
        def manage(*args):
            home = {"ANDON_HOME": str(tmp_path / "home"), "ANDON_WORKSPACE": str(tmp_path)}
            env = {name: value for name, value in os.environ.items() if not name.startswith("ANDON_")}
            return subprocess.run(
                [sys.executable, ROOT / "manage.py", "loop", *args],
                env={**env, **home},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        return manage

    def test_runs_without_a_database(self, project, manage, tmp_path):
        agent = f"{sys.executable} -c \"import sys; print('got', len(sys.stdin.read()) > 9)\""
        done = manage(str(project.root), "--agent", agent, "--max", "2", "--max-cost", "1", "--story-timeout", "1")
        assert done.returncode == 0, done.stderr
        assert "max_iterations" in done.stdout
        assert project.log(2) == "got True\n"
        assert not list(tmp_path.glob("home/*.sqlite3"))

    @pytest.mark.parametrize(
        "args",
        [
            ["{root}"],
            ["{root}", "--agent", "sh", "--max", "0"],
            ["{root}", "--agent", "sh", "--max", "many"],
            ["{root}", "--agent", "sh", "--max-cost", "nan"],
            ["{root}", "--agent", "sh", "--story-timeout", "-1"],
            ["{root}", "--agent", "'unclosed"],
            ["{root}", "--agent", "no-such-agent"],
            ["{root}/gone", "--agent", "sh"],
        ],
    )
    def test_wrong_usage_is_2(self, project, capsys, args):
        argv = ["manage.py", "loop", *(arg.format(root=project.root) for arg in args)]
        with pytest.raises(SystemExit) as ended:
            Command().run_from_argv(argv)
        assert ended.value.code == 2
        assert capsys.readouterr().err

    def test_busy_is_75_and_help_helps(self, project, manage):
        with ralph.project_lock(project.root):
            assert manage(str(project.root), "--agent", "true").returncode == 75
        shown = " ".join(manage("--help").stdout.split())
        assert "An older one is ignored" in shown
        assert "exit status" in shown
        assert "budget.json" in shown
        assert "--resume" in shown

    def test_resume(self, project, manage):
        for most in ("1", "2"):
            done = manage(str(project.root), "--agent", "true", "--max", most, "--resume")
            assert done.returncode == 0, done.stderr
        assert "goes on" in done.stdout
        assert len(set(project.runs())) == 1
        assert len(project.usage()) == 2
