"""The worker that needs no agent, as a real process that reports to a real server."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kanban.context import Attempt, Brief, ParentResult, Remark, render
from services import specs
from tests.kanban.loopback import CLI, Answer, serving
from tests.running import wait_for

pytestmark = pytest.mark.pure

DEMO = CLI.with_name("demo_worker.py")
TASK = "t_1a2b3c4d"
AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def context(body, **more):
    base = dict.fromkeys(("title", "assignee", "tenant", "project", "workspace", "services_block", "cli"), "x")
    lists = {"parents": (), "comments": (), "attempts": ()}
    return render(
        Brief(
            **{
                **base,
                **lists,
                "task_id": TASK,
                "body": body,
                "attempt": 3,
                "services_required": False,
                "sidecar": "/x",
                **more,
            }
        )
    )


@pytest.fixture
def board():
    with serving() as board:
        yield board


@pytest.fixture
def start(board, tmp_path):
    """Start the demo worker on a body; what still runs afterwards is killed."""
    started = []

    def begin(body, *, whole=None, **more):
        workspace = tmp_path / "workspace"
        workspace.mkdir(exist_ok=True)
        file = tmp_path / "context.md"
        file.write_text(context(body) if whole is None else whole)
        process = subprocess.Popen(
            [sys.executable, str(DEMO), TASK, str(workspace), str(file)],
            env=board.environ(ANDON_SIDECAR=str(tmp_path / "agents/t_1a2b3c4d-3/managed-spawn.json"), **more),
            cwd=workspace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Run it to its end and return (exit code, output)."""

    def to_the_end(body, **more):
        process = start(body, **more)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    return to_the_end


def test_works_through_its_steps(run, board, tmp_path):
    start = time.monotonic()
    code, output = run("Just do it.")
    assert code == 0, output
    assert time.monotonic() - start > 1.5
    assert [line for line in output.splitlines() if line != "ok"] == [
        "step 1 of 3",
        "step 2 of 3",
        "step 3 of 3",
        "complete",
        "ok: the board knows; end now",
    ]
    assert board.verbs() == ["heartbeat", "comments", "heartbeat", "heartbeat", "complete"]
    assert board.heard[-1].json == {"result": "Steps done: 3. The report is demo-report.md.", "summary": "Done."}
    assert (tmp_path / "workspace/demo-report.md").read_text() == "# t_1a2b3c4d\n\nAttempt 3, steps: 3.\n"


@pytest.mark.parametrize(
    ("line", "beats"),
    [
        ("demo: steps 5 every 0.01", 5),
        ("  demo:   steps  1   every 0 ", 1),
        ("demo: steps 0", 0),
        ("demo: steps 7 every 0\ntext\ndemo: steps 2 every 0", 2),
        ("demo: steps 2 every 0\r\n", 2),
        ("demo: fail-until 3\ndemo: steps 1 every 0", 1),
    ],
)
def test_as_many_steps_as_told(run, board, line, beats):
    code, output = run(f"Text first.\n{line}")
    assert code == 0, output
    assert board.verbs().count("heartbeat") == beats
    assert board.verbs()[-1] == "complete"


@pytest.mark.parametrize("line", ["demo: crash", "demo: fail-until 4"])
def test_crashes(run, board, line):
    code, output = run(line)
    assert code == 1
    assert output.splitlines()[0] == "Traceback (most recent call last):"
    assert output.splitlines()[-1] == "RuntimeError: the demo worker crashes: attempt 3 of t_1a2b3c4d was told to"
    assert board.heard == []


def test_crashes_after_the_steps_it_was_told(run, board):
    assert run("demo: crash\ndemo: steps 2 every 0")[0] == 1
    assert board.verbs() == ["heartbeat", "comments", "heartbeat"]


@pytest.mark.parametrize(("line", "attempt", "code"), [("2", "1", 1), ("2", "2", 0), ("0", "1", 0)])
def test_fails_until(run, line, attempt, code):
    body = f"demo: fail-until {line}" + ("" if code else "\ndemo: steps 0")
    assert run(body, ANDON_RUN=f"{TASK}/{attempt}")[0] == code


@pytest.mark.parametrize("code", [0, 7, 75, 255])
def test_ends_with_a_code(run, board, code):
    assert run(f"demo: exit {code}") == (code, f"ending with {code}, without a verdict\n")
    assert board.heard == []


def test_hangs_and_ends_at_term(start, board):
    process = start("demo: hang")
    assert process.stdout.readline() == "hanging\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert board.heard == []
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM


def test_ignores_term(start, board):
    process = start("demo: ignore-term")
    wait_for(lambda: "comments" in board.verbs(), 10)
    process.terminate()
    beats = len(board.heard)
    wait_for(lambda: len(board.heard) >= beats + 2, 10)
    board.by_verb["heartbeat"] = Answer(401)
    beats = len(board.heard)
    wait_for(lambda: len(board.heard) >= beats + 2, 10)
    assert process.poll() is None
    process.kill()
    assert "SIGTERM came and is ignored\n" in process.stdout.read()


def test_ignores_term_and_ends_after_its_steps(start, board):
    process = start("demo: ignore-term\ndemo: steps 3 every 0.3")
    wait_for(lambda: "comments" in board.verbs(), 10)
    process.terminate()
    assert process.wait(10) == 0
    assert board.verbs()[-1] == "complete"


def test_blocks(run, board):
    assert run("demo: block -- Which of the two?")[0] == 0
    assert board.verbs() == ["block"]
    assert board.heard[0].json == {"reason": "-- Which of the two?", "kind": "needs_input"}


def test_leaves_a_sidecar(run, board, tmp_path):
    assert run("demo: service 8123\ndemo: steps 1 every 0")[0] == 0
    assert board.verbs()[-1] == "complete"
    folder = tmp_path / "agents/t_1a2b3c4d-3"
    assert [each.name for each in folder.iterdir()] == ["managed-spawn.json"]
    content = specs.read_sidecar(tmp_path, "t_1a2b3c4d-3")
    told = json.loads(content)
    assert (told["written_by"], told["wi_id"]) == ("t_1a2b3c4d-3", TASK)
    (tmp_path / "project/.git").mkdir(parents=True)
    top = tmp_path / "project"
    found = specs.validate(content, specs.Limits(default_cwd=str(top), roots=(str(top),)), specs.System())
    assert isinstance(found, specs.Accepted), found
    assert list(found.warnings) == []
    assert told["specs"][0]["args"] == [
        *("-m", "http.server", "8123", "--bind", "127.0.0.1"),
        *("--directory", str(tmp_path / "workspace")),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "demo: dance",
        "demo:",
        "demo: steps",
        "demo: steps -1",
        "demo: steps 1 every",
        "demo: exit 256",
        "demo: block",
        "demo: service x",
        "demo: crash now",
    ],
)
def test_what_it_does_not_understand_a_person_gets_to_read(run, board, line):
    code, output = run(line)
    assert code == 0, output
    assert board.verbs() == ["block"]
    assert board.heard[0].json == {"reason": f"This line is not understood: {line.strip()}", "kind": "needs_input"}


class TestBody:
    def test_only_the_body_gives_orders(self, run, board):
        order = "demo: crash\n```\n## What to do\n\n```text\ndemo: crash\n```"
        text = context(
            "````\ndemo: steps 1 every 0\n`````\nmore",
            title=f"demo: crash\n{order}",
            parents=[ParentResult("t_0", "demo: crash", order, AT)],
            comments=[Remark("demo: crash", order, AT)],
            attempts=[Attempt(1, "crashed", order, order)],
            services_block="demo: crash",
        )
        code, output = run("", whole=text)
        assert code == 0, output
        assert board.verbs().count("heartbeat") == 1

    def test_empty_body(self, run, board):
        text = context("", comments=[Remark("ada", "demo: crash", AT)])
        assert run("", whole=text)[0] == 0
        assert board.verbs()[-1] == "complete"

    def test_no_order_beside_it(self, run):
        assert run("see demo: crash\nDemo: crash\ndemo crash\ndemo: steps 0")[0] == 0


@pytest.mark.parametrize("verb", ["heartbeat", "comments", "complete"])
def test_stops_at_once_when_its_attempt_is_over(run, board, tmp_path, verb):
    board.by_verb[verb] = Answer(409, b'{"error": "superseded", "detail": "Another attempt runs."}')
    code, output = run("demo: steps 3 every 0.1")
    assert code == 5
    assert "this attempt (t_1a2b3c4d/3) is over: stop working" in output
    assert board.verbs()[-1] == verb
    assert board.verbs().count(verb) == 1


def test_board_that_refuses_its_verdict(run, board):
    board.by_verb["complete"] = Answer(422, b'{"error": "x", "detail": "No."}')
    code, output = run("demo: steps 1 every 0")
    assert code == 1
    assert "error: No." in output


def test_heartbeat_that_is_lost_is_no_end(run, board):
    board.by_verb["heartbeat"] = Answer(503)
    assert run("demo: steps 2 every 0", ANDON_CLI_PATIENCE="0")[0] == 0
    assert board.verbs()[-1] == "complete"


def test_wrong_command_line():
    done = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "usage: demo_worker.py TASK_ID WORKSPACE CONTEXT_FILE\n")


def test_readable_by_the_newcomer():
    """Every line that it obeys stands in its own first words."""
    source = Path(DEMO).read_text()
    for kind in ("steps", "crash", "hang", "exit", "ignore-term", "block", "service", "fail-until"):
        assert f"    demo: {kind}" in source
