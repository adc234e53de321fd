"""The board as it runs itself: a real `up`, the demo profile's real workers, real deaths."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.services.machine import pause, ticks_of
from tests.projects.files import write_project
from tests.running import ROOT, Up, free_port, running, wait_for
from tests.services.repository import git

pytestmark = pytest.mark.journey

WITHIN_S = 60.0
OPEN = {"ready", "running"}


class Board:
    """What a client of the board does, and what an operator sees of its processes."""

    def __init__(self, up: Up) -> None:
        self.up = up

    def create(self, title: str, *lines: str, **fields: Any) -> dict[str, Any]:
        body = {"title": title, "body": "\n".join(lines), "assignee": "demo", **fields}
        return self.up.post("/api/kanban/tasks", body)["task"]

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """Return status and answer, whatever the status."""
        headers = {"Authorization": f"Bearer {token or self.up.token()}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.up.url}/api/kanban{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())

    def task(self, task_id: str) -> dict[str, Any]:
        return self.detail(task_id)["task"]

    def detail(self, task_id: str) -> dict[str, Any]:
        return self.up.get(f"/api/kanban/tasks/{task_id}")

    def runs(self, task_id: str) -> list[dict[str, Any]]:
        return sorted(self.detail(task_id)["runs"], key=lambda run: run["number"])

    def until(self, task_id: str, status: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] == status else None

        try:
            return wait_for(there, within_s)
        except AssertionError:
            raise AssertionError(json.dumps(self.detail(task_id), indent=1)) from None

    def events(self, task_id: str) -> list[dict[str, Any]]:
        """Return a task's events as the log has them, oldest first."""
        return self.up.get(f"/api/events?since=0&subject=task:{task_id}")["events"]

    def kinds(self, task_id: str) -> list[str]:
        return [event["kind"].removeprefix("task.") for event in self.events(task_id)]

    def event(self, task_id: str, kind: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [event for event in self.events(task_id) if event["kind"] == f"task.{kind}"]

        return wait_for(found, within_s, 0.02)[-1]

    def pid(self, task_id: str, attempt: int = 1) -> int:
        """Return the pid of an attempt's worker once it is there."""

        def known() -> int | None:
            mine = [run for run in self.runs(task_id) if run["number"] == attempt]
            return mine[0]["pid"] if mine else None

        return wait_for(known, WITHIN_S)

    def log(self, task_id: str, run: int | None = None) -> str:
        return self.up.get(f"/api/kanban/tasks/{task_id}/log{f'?run={run}' if run else ''}")["content"]

    def shell(self, *lines: str) -> str:
        """Do to the rows what no door can: let time pass."""
        code = "\n".join(["from kanban.models import *", "from django.utils import timezone", *lines])
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "shell", "-v", "0", "-c", code],
            env=self.up.env,
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("kanban")
    with running(folder, start=False) as up:
        root = write_project(up.workspace / "garden")
        git(root, "init", "-q", "-b", "main")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", "A start")
        up.start()
        wait_for(lambda: [each for each in up.get("/api/ralph/status")["projects"] if each["slug"] == "garden"], 90)
        made = Board(up)
        # Who ignores TERM is killed after two seconds instead of ten.
        made.shell("Profile.objects.filter(name='demo').update(stop_grace_s=2, concurrency=50)")
        yield made


def is_gone(pid: int) -> bool:
    return ticks_of(pid) is None


def marked(task_id: str) -> list[int]:
    """Return the pids of all living processes that know themselves as workers of a task."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"ANDON_TASK={task_id}".encode() in environment and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_task_is_dispatched_worked_on_reported_and_its_child_follows(board: Board) -> None:
    parent = board.create("Plant beans", "demo: steps 2 every 0.2", workspace_kind="scratch")
    child = board.create("Water beans", "demo: steps 1 every 0.1", parents=[parent["id"]])
    assert child["status"] == "todo"
    done = board.until(parent["id"], "done")
    assert done["result"]
    [run] = board.runs(parent["id"])
    assert (run["number"], run["profile"], run["outcome"]) == (1, "demo", "completed")
    assert "step 2 of 2" in board.log(parent["id"])
    assert board.kinds(parent["id"])[:3] == ["created", "claimed", "spawned"]
    assert board.kinds(parent["id"]).count("completed") == 1
    assert [comment["author"] for comment in board.detail(parent["id"])["comments"]] == [f"run:{parent['id']}/1"]
    board.until(child["id"], "done")
    context = (board.up.home / "agents" / f"{child['id']}-1" / "context.md").read_text()
    assert done["result"].splitlines()[0] in context
    wait_for(lambda: not marked(parent["id"]) and not marked(child["id"]), WITHIN_S)


def test_a_new_task_has_its_worker_at_once(board: Board) -> None:
    task = board.create("Quick", "demo: steps 1 every 0.1")
    created, spawned = board.event(task["id"], "created"), board.event(task["id"], "spawned")
    took = datetime.fromisoformat(spawned["at"]) - datetime.fromisoformat(created["at"])
    # Not at the dispatcher's next tick, which is five seconds apart.
    assert took.total_seconds() < 3
    board.until(task["id"], "done")


def test_a_killed_worker_is_told_at_once_tried_again_and_at_the_limit_the_breaker_opens(
    board: Board, record_property: Any
) -> None:
    task = board.create("Doomed", "demo: hang")
    board.shell(f"Task.objects.filter(pk={task['id']!r}).update(failure_limit=2)")
    took = []
    for attempt in (1, 2):
        pid = board.pid(task["id"], attempt)
        pause(0.3)
        killed_at = time.time()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda n=attempt: board.kinds(task["id"]).count("crashed") == n, WITHIN_S, 0.02)
        told = board.event(task["id"], "crashed")
        took.append(datetime.fromisoformat(told["at"]).timestamp() - killed_at)
        assert (told["payload"]["pid"], told["payload"]["exit_code"], told["payload"]["failures"]) == (pid, -9, attempt)
    record_property("summary", f"kill -9 of a kanban worker -> task.crashed: {max(took) * 1000:.0f} ms at most")
    assert min(took) < 0.25
    blocked = board.until(task["id"], "blocked")
    assert (blocked["block_kind"], blocked["failures"]) == ("breaker", 2)
    assert "killed by signal 9" in blocked["last_error"]
    assert [run["outcome"] for run in board.runs(task["id"])] == ["crashed", "crashed"]
    assert board.kinds(task["id"]).count("gave_up") == 1
    status, again = board.ask("POST", f"/tasks/{task['id']}/unblock", {})
    assert (status, again["task"]["failures"]) == (200, 0)
    board.pid(task["id"], 3)
    board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})
    wait_for(lambda: not marked(task["id"]), WITHIN_S)


def test_failing_until_the_third_attempt(board: Board) -> None:
    task = board.create("Third time lucky", "demo: fail-until 3", "demo: steps 1 every 0.1")
    done = board.until(task["id"], "done")
    assert [run["outcome"] for run in board.runs(task["id"])] == ["crashed", "crashed", "completed"]
    assert (done["failures"], done["last_error"]) == (0, None)


@pytest.mark.parametrize(
    ("line", "kind", "status"),
    [("demo: exit 0", "protocol_violation", "blocked"), ("demo: exit 75", "rate_limited", "ready")],
)
def test_an_end_without_a_verdict(board: Board, line: str, kind: str, status: str) -> None:
    task = board.create("Silent", line)
    board.event(task["id"], kind)
    found = board.until(task["id"], status)
    if kind == "rate_limited":
        assert (found["failures"], len(board.runs(task["id"]))) == (0, 1)
    else:
        assert board.kinds(task["id"]).count("protocol_violation") == 3
        assert found["block_kind"] == "breaker"
    board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})


def test_a_worker_that_asks_waits_for_a_person(board: Board) -> None:
    task = board.create("Ask", "demo: block which colour?")
    blocked = board.until(task["id"], "blocked")
    assert (blocked["block_kind"], blocked["block_reason"]) == ("needs_input", "which colour?")
    assert board.runs(task["id"])[0]["outcome"] == "blocked"
    assert blocked["failures"] == 0


def test_a_lease_that_is_over_while_its_worker_lives_is_extended(board: Board) -> None:
    task = board.create("Slow", "demo: hang")
    pid = board.pid(task["id"])
    board.shell(f"Task.objects.filter(pk={task['id']!r}).update(lease_until=timezone.now())")
    wait_for(lambda: (board.task(task["id"])["lease_until"] or 0) > time.time() + 600, WITHIN_S)
    assert board.task(task["id"])["status"] == "running"
    assert not is_gone(pid)
    assert len(board.runs(task["id"])) == 1
    board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})
    wait_for(lambda: is_gone(pid), WITHIN_S)


def test_too_long_is_ended_whoever_does_not_listen(board: Board) -> None:
    task = board.create("Endless", "demo: ignore-term", max_runtime_s=1)
    board.shell(f"Task.objects.filter(pk={task['id']!r}).update(failure_limit=1)")
    pid = board.pid(task["id"])
    blocked = board.until(task["id"], "blocked")
    assert board.runs(task["id"])[0]["outcome"] == "timed_out"
    assert blocked["block_kind"] == "breaker"
    # TERM, its grace, KILL.
    wait_for(lambda: is_gone(pid), WITHIN_S)


def test_an_operator_releases_and_the_old_worker_has_to_be_gone_first(board: Board) -> None:
    task = board.create("Stubborn", "demo: ignore-term", "demo: steps 600 every 0.2")
    pid = board.pid(task["id"])
    wait_for(lambda: "step 1 of 600" in board.log(task["id"]), WITHIN_S)
    status, released = board.ask("POST", f"/tasks/{task['id']}/release", {})
    assert (status, released["task"]["status"]) == (200, "ready")
    status, refusal = board.ask("POST", f"/tasks/{task['id']}/claim", {})
    assert (status, refusal["error"]) == (409, "still-stopping")
    assert not is_gone(pid)
    second = board.pid(task["id"], 2)
    assert is_gone(pid)
    assert board.runs(task["id"])[0]["outcome"] == "released"
    assert marked(task["id"]) == [second]
    # What the first still says while it is being stopped is not heard.
    assert "is over: stop working" in board.log(task["id"], run=1)
    board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})
    wait_for(lambda: not marked(task["id"]), WITHIN_S)


def test_a_workspace_that_cannot_be_made_is_a_failure_to_spawn(board: Board) -> None:
    task = board.create("Outside", workspace_kind="dir", workspace_path="/etc/andon")
    blocked = board.until(task["id"], "blocked")
    assert blocked["last_error"].startswith("workspace: ")
    assert board.kinds(task["id"]).count("spawn_failed") == 4
    assert board.kinds(task["id"]).count("spawn_auto_blocked") == 1
    assert {run["outcome"] for run in board.runs(task["id"])} == {"spawn_failed"}
    status, log = board.ask("GET", f"/tasks/{task['id']}/log")
    assert (status, log["exists"]) == (200, False)


def test_a_worktree_of_the_project(board: Board) -> None:
    task = board.create("Branch", "demo: steps 1 every 0.1", workspace_kind="worktree", project="garden")
    board.until(task["id"], "done")
    workspace = board.up.home / "workspaces" / task["id"]
    assert git(workspace, "rev-parse", "--abbrev-ref", "HEAD").strip() == f"andon/{task['id']}"
    assert (workspace / "demo-report.md").exists()


@pytest.mark.parametrize(("required", "ports", "outcome"), [(True, "free", "done"), (True, "none", "blocked")])
def test_services_decide_whether_a_task_is_done(board: Board, required: bool, ports: str, outcome: str) -> None:
    lines = [f"demo: service {free_port()}"] if ports == "free" else ["demo: steps 1 every 0.1"]
    task = board.create("Serve", *lines, project="garden", services_required=required)
    board.event(task["id"], "reported")
    found = board.until(task["id"], outcome)
    [run] = board.runs(task["id"])
    if outcome == "done":
        assert run["outcome"] == "completed"
        items = board.up.get("/api/managed-processes?project=garden")["items"]
        mine = [item for item in items if item["owner_wi"] == task["id"]]
        assert [(item["healthy"], item["owner_agent"]) for item in mine] == [(True, f"{task['id']}-1")]
        body = {"name": mine[0]["name"], "project": "garden"}
        board.up.post("/api/managed-processes/kill", body)
    else:
        assert (run["outcome"], found["block_kind"]) == ("failed", "capability")
        assert "sidecar-missing" in found["block_reason"]
        pause(6)
        assert len(board.runs(task["id"])) == 1


def test_no_healthy_service(board: Board) -> None:
    # The port is taken by a stranger, so the declared server can not listen.
    import socket

    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        task = board.create("Taken", f"demo: service {stranger.getsockname()[1]}", project="garden")
        blocked = board.until(task["id"], "blocked")
        assert blocked["block_kind"] == "capability"
        assert "port-conflict" in blocked["block_reason"] or "managed-spawn" in blocked["block_reason"]


def test_a_pull_worker_elsewhere(board: Board) -> None:
    task = board.create("Elsewhere", assignee="somebody-else")
    status, claimed = board.ask("POST", f"/tasks/{task['id']}/claim", {})
    assert (status, claimed["task"]["status"], claimed["run"]["number"]) == (200, "running", 1)
    token = claimed["run"]["token"]
    assert board.ask("POST", f"/tasks/{task['id']}/heartbeat", {"note": "on it"}, token)[0] == 200
    assert board.ask("GET", "/board", token=token)[0] == 403
    board.ask("POST", f"/tasks/{task['id']}/release", {})
    # The second claim has another token, and the first is dead.
    status, again = board.ask("POST", f"/tasks/{task['id']}/claim", {})
    assert (status, again["run"]["number"]) == (200, 2)
    assert board.ask("POST", f"/tasks/{task['id']}/complete", {"result": "late"}, token)[0] == 401
    status, done = board.ask("POST", f"/tasks/{task['id']}/complete", {"result": "mine"}, again["run"]["token"])
    assert (status, done["task"]["status"], done["task"]["result"]) == (200, "done", "mine")


def test_andon_killed_in_the_middle_adopts_and_doubles_nothing(board: Board) -> None:
    hanging = [board.create(f"Long {n}", "demo: hang") for n in range(2)]
    pids = {task["id"]: board.pid(task["id"]) for task in hanging}
    [worker], [web] = board.up.children("worker"), board.up.children("web")
    os.kill(worker, signal.SIGKILL)
    os.kill(web, signal.SIGKILL)
    os.kill(board.up.process.pid, signal.SIGKILL)
    board.up.process.wait(10)
    board.up.start()
    for task in hanging:
        assert board.task(task["id"])["status"] == "running"
        assert len(board.runs(task["id"])) == 1
        assert marked(task["id"]) == [pids[task["id"]]]
    # And one that dies while nobody watches is told when somebody does.
    board.up.stop()
    os.kill(pids[hanging[0]["id"]], signal.SIGKILL)
    board.up.start()
    board.event(hanging[0]["id"], "crashed")
    board.pid(hanging[0]["id"], 2)
    for task in hanging:
        board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})
    wait_for(lambda: not any(marked(task["id"]) for task in hanging), WITHIN_S)


def test_one_error_of_many_tasks_pauses_their_profile(board: Board) -> None:
    board.shell(
        "Profile.objects.create(name='broken', argv=['{python}', '-c', 'raise SystemExit(3)'], enabled=True, "
        "concurrency=8)"
    )
    tasks = [board.create(f"Broken {n}", assignee="broken") for n in range(4)]

    def paused() -> dict[str, Any] | None:
        found = [each for each in board.up.get("/api/kanban/stats")["profiles"] if each["name"] == "broken"]
        return found[0] if found and found[0]["paused"] else None

    wait_for(paused, WITHIN_S)
    pause(1)
    states = {board.task(task["id"])["status"] for task in tasks}
    assert states <= OPEN | {"blocked"}
    spent = [board.task(task["id"])["failures"] for task in tasks]
    assert max(spent) < 5
    status, answer = board.ask("POST", "/dispatch?dry_run=true")
    assert status == 200
    assert {task["id"] for task in tasks} <= {
        *answer["skipped_nonspawnable"],
        *(task["id"] for task in tasks if board.task(task["id"])["status"] != "ready"),
    }
    for task in tasks:
        board.ask("PATCH", f"/tasks/{task['id']}", {"status": "archived"})


def test_without_a_worker_nothing_is_dispatched_or_lost(board: Board) -> None:
    [worker] = board.up.children("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        # Until its tick is old, a pass would claim for it.
        wait_for(lambda: board.ask("POST", "/dispatch?max=0")[0] == 503, WITHIN_S, 0.5)
        task = board.create("Patience", "demo: steps 1 every 0.1")
        assert board.ask("POST", "/dispatch")[0] == 503
        assert board.task(task["id"])["status"] == "ready"
    finally:
        os.kill(worker, signal.SIGCONT)
    board.until(task["id"], "done")
