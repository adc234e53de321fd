"""Loops as people have them started, stopped, limited and rolled back: a real `up`, real agents, real git."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from config.demo import agent as demo_agent
from config.demo import make_demo
from tests.journeys.loops.yard import ENDS, WITHIN_S, Opens, Reader, Yard, agent, working, yard
from tests.journeys.services.machine import pause, ticks_of
from tests.projects.files import stories, write_prd
from tests.running import ROOT, Up, running, wait_for
from tests.services.repository import everything, git

pytestmark = pytest.mark.journey

PID = "scripts/ralph/.ralph.pid"
PRD = "scripts/ralph/prd.json"
PROGRESS = "scripts/ralph/progress.txt"
DEAF = "trap 'echo term >> terms' TERM\necho ready > ready\nwhile :; do sleep 300 & wait $!; done"
ROUNDS = 6
FILES = 300
BOOKKEEPING = ("scripts/ralph/prd.json", "scripts/ralph/progress.txt")


@pytest.fixture(scope="module")
def andon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with running(tmp_path_factory.mktemp("loops")) as up, yard(up) as made:
        yield made


def test_it_is_started_shown_and_stopped_with_its_agent(andon: Yard) -> None:
    make_demo(andon.up.workspace)
    root = andon.up.workspace / "greenhouse"
    andon.wait_project(root.name)
    andon.configure(root.name, demo_agent(0.7))
    head = git(root, "rev-parse", "HEAD")

    status, said = andon.post("greenhouse/start", {"max_iterations": 50})
    assert (status, said["success"]) == (200, True)
    pid, ticks = said["pid"], ticks_of(said["pid"])
    assert (Path(f"/proc/{pid}/cwd").readlink(), os.getsid(pid)) == (root, pid)
    apart = wait_for(lambda: [seen for seen in working(root) if seen.session != pid], WITHIN_S)
    assert "demo_agent.py" in " ".join(apart[0].argv)
    wait_for(lambda: andon.status("greenhouse")["running"], WITHIN_S)
    assert andon.status("greenhouse")["pid"] == pid
    status, said = andon.post("greenhouse/start")
    assert (status, said["error"], said["success"], said["pid"]) == (409, "already-running", False, pid)

    wait_for(lambda: andon.up.get("/api/ralph/greenhouse/iterations")["total"] > 1, WITHIN_S)
    wait_for(lambda: andon.status("greenhouse")["storiesComplete"], WITHIN_S)
    assert git(root, "rev-parse", "HEAD") != head
    status, said = andon.post("greenhouse/stop", role="admin")
    assert (status, said["pid"], said["state"]) == (200, pid, "stopped")
    assert (ticks_of(pid) == ticks, working(root), (root / PID).exists()) == (False, [], False)
    andon.look_again("greenhouse")
    [end] = [event for event in andon.told("greenhouse") if event["kind"] in ENDS]
    assert (end["kind"], end["payload"]["pid"], end["actor"]) == ("loop.stopped", pid, "token:test-admin")
    assert [event["actor"] for event in andon.told("greenhouse", "loop.started")] == ["token:test-operator"]
    assert andon.status("greenhouse")["running"] is False
    status, said = andon.post("greenhouse/stop")
    assert (status, said["state"], said["pid"]) == (200, "stopped", None)


@pytest.mark.parametrize("grace_s", [0, 1])
def test_one_without_a_pid_file_that_does_not_listen_is_killed(andon: Yard, grace_s: int) -> None:
    slug = andon.name(f"deaf-{grace_s}")
    root = andon.project(slug, script=DEAF)
    pid = andon.start(slug)
    wait_for((root / "ready").exists, WITHIN_S)
    wait_for(lambda: andon.status(slug)["running"], WITHIN_S)
    assert (andon.status(slug)["pid"], (root / PID).exists()) == (pid, False)
    assert len(working(root)) == 2
    status, said = andon.post(f"{slug}/stop", {"grace_s": grace_s})
    assert (status, said["pid"], said["state"]) == (200, pid, "killed")
    assert working(root) == []
    assert (root / "terms").exists() is (grace_s > 0)
    kind, payload = andon.only_end(slug)
    assert (kind, payload["pid"], payload["exit_code"], payload["killed"]) == ("loop.stopped", pid, -9, True)


ALL_PASSED = json.dumps({"project": "all", "userStories": stories("passed", "passed", "passed")})


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        ("sleep 0.5; exit 3", "loop.crashed", 3),
        ("exit 3", "loop.crashed", 3),
        ("sleep 0.5", "loop.stopped", 0),
        ("exit 0", "loop.stopped", 0),
        ("kill -SEGV $$", "loop.crashed", -signal.SIGSEGV),
        (f"sleep 0.5; echo '{ALL_PASSED}' > {PRD}", "loop.completed", 0),
    ],
)
def test_how_it_ended_is_told_once(
    andon: Yard, request: pytest.FixtureRequest, script: str, kind: str, code: int
) -> None:
    slug = andon.name(f"ended-{request.node.callspec.indices['script']}")
    andon.project(slug, script=script)
    status, said = andon.post(f"{slug}/start")
    # One that failed at once may have ended before the answer is given.
    assert (status, said["success"]) in ({(200, True)} if code == 0 else {(200, True), (409, False)}), said
    told, payload = andon.only_end(slug)
    assert (told, payload["exit_code"]) == (kind, code)
    assert [event["payload"]["pid"] for event in andon.told(slug, "loop.started")] == [payload["pid"]]
    if status == 200:
        assert said["pid"] == payload["pid"]


def next_worker(up: Up) -> None:
    """Kill the worker, and wait until the next one works."""
    [worker] = up.children("worker")
    before = up.log.read_text().count("adopted:")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: up.log.read_text().count("adopted:") > before, WITHIN_S)


def test_it_outlives_its_worker_and_is_stopped_by_the_next(andon: Yard) -> None:
    slug = andon.name("survivor")
    root = andon.project(slug, agent=agent(0, "go"))
    pid = andon.start(slug, max_iterations=1000)
    ticks = ticks_of(pid)
    wait_for((root / "agents.ledger").exists, WITHIN_S)
    next_worker(andon.up)
    assert ticks_of(pid) == ticks
    (root / "go").touch()
    wait_for(lambda: len((root / "agents.ledger").read_text().splitlines()) > 2, WITHIN_S)
    status, said = andon.post(f"{slug}/start")
    assert (status, said["error"]) == (409, "already-running")
    assert {seen.session for seen in working(root) if "loop" in seen.argv} == {pid}
    status, said = andon.post(f"{slug}/stop")
    assert (status, said["pid"], said["state"]) == (200, pid, "stopped")
    assert (working(root), (root / PID).exists()) == ([], False)
    kind, payload = andon.only_end(slug)
    assert (kind, payload["pid"]) == ("loop.stopped", pid)
    assert len(andon.told(slug, "loop.started")) == 1


def test_a_worker_killed_while_it_stops_one(andon: Yard) -> None:
    slug = andon.name("half-stopped")
    root = andon.project(slug, script=DEAF)
    pid = andon.start(slug)
    wait_for((root / "ready").exists, WITHIN_S)
    wait_for(lambda: andon.status(slug)["running"], WITHIN_S)
    asked = andon.posting(f"{slug}/stop", {"grace_s": 2})
    wait_for((root / "terms").exists, WITHIN_S)
    next_worker(andon.up)
    wait_for(lambda: not working(root), WITHIN_S)
    status, said = asked.result(WITHIN_S)
    # The next worker is not its parent: how it ended not every kernel tells. It is late where the machine is slow.
    assert (status, said.get("state") or said["error"]) in {
        (200, "killed"),
        (200, "stopped"),
        (504, "still-stopping"),
    }
    assert (root / "terms").read_text() == "term\n"
    kind, payload = andon.only_end(slug)
    assert (kind, payload["pid"]) == ("loop.stopped", pid)


@pytest.mark.parametrize(
    ("limit", "reason", "iterations"),
    [({"max_iterations": 1}, "max_iterations", 1), ({"max_cost_usd": "1.10"}, "max_cost", 2)],
)
def test_a_budget_set_while_it_runs_ends_it(andon: Yard, limit: dict[str, Any], reason: str, iterations: int) -> None:
    slug = andon.name(f"budget-{reason.replace('_', '-')}")
    root = andon.project(slug, agent=agent(0.6, "go"))
    pid = andon.start(slug, max_iterations=1000)
    wait_for((root / "agents.ledger").exists, WITHIN_S)
    fields = {"max_iterations": "", "max_cost_usd": "", **limit}
    assert andon.send_page(f"/projects/{slug}/budget/", **fields) == f"{andon.up.url}/projects/{slug}/"
    (root / "go").touch()
    kind, payload = andon.only_end(slug)
    assert (kind, payload["pid"], payload["reason"], payload["exit_code"]) == ("loop.stopped", pid, reason, 0)
    assert andon.up.get(f"/api/ralph/{slug}/iterations")["total"] == iterations
    wait_for(lambda: andon.up.get("/api/ralph/usage")["by_project"].get(slug, {}).get("runs") == iterations, WITHIN_S)
    assert float(andon.up.get("/api/ralph/usage")["by_project"][slug]["cost"]) == pytest.approx(0.6 * iterations)


def test_it_goes_on_with_its_last_run(andon: Yard) -> None:
    slug = andon.name("resumed")
    root = andon.project(slug, agent=agent(0.01))
    andon.start(slug, max_iterations=1)
    wait_for(lambda: len(andon.ends(slug)) == 1, WITHIN_S)
    andon.start(slug, resume=True, max_iterations=3)
    wait_for(lambda: len(andon.ends(slug)) == 2, WITHIN_S)
    andon.look_again(slug)
    assert [payload["reason"] for _, payload in andon.ends(slug)] == ["max_iterations"] * 2
    told = recorded(root)
    assert len({run for _, run in told}) == 1
    kinds = [kind for kind, _ in told]
    assert (kinds.count("loop_started"), kinds.count("loop_resumed")) == (1, 1)
    assert kinds.count("iteration_completed") == 3
    andon.start(slug, max_iterations=1)
    wait_for(lambda: len(andon.ends(slug)) == 3, WITHIN_S)
    assert len({run for _, run in recorded(root)}) == 2


def recorded(root: Path) -> list[tuple[str, str]]:
    """Return kind and run of every line of a project's history."""
    lines = [json.loads(line) for line in (root / ".ralph/history.jsonl").read_text().splitlines()]
    return [(line["type"]["kind"], line["data"]["run"]) for line in lines]


class Repository:
    """A project whose commits change many files each; the agent flips a story after its commit, as agents do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits = 0
        self.written: dict[str, dict[str, str]] = {}
        write_prd(root, "passed", "pending", "pending")
        (root / PROGRESS).write_text("# Progress\n")
        git(root, "init", "-q", "-b", "main")
        self.commit("A beginning")

    def commit(self, message: str, files: int = FILES) -> str:
        """Change many files, take some away, add others; returns the commit."""
        self.commits += 1
        texts = {f"src/part{n % 17}/file{n}.txt": f"{n} as of {self.commits}\n" * 20 for n in range(files)}
        texts |= {f"src/only{self.commits}/new{n}.txt": f"{n}\n" for n in range(files // 10)}
        git(self.root, "rm", "-rq", "--ignore-unmatch", "src")
        for name, text in texts.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.root, "add", "-A")
        git(self.root, "commit", "-qm", message)
        head = git(self.root, "rev-parse", "HEAD")
        self.written[git(self.root, "rev-parse", "HEAD:src")] = texts
        return head

    def pass_story(self) -> None:
        """Write what an agent writes after its commit, of which nothing may be lost."""
        write_prd(self.root, "passed", "passed", "pending")
        with (self.root / PROGRESS).open("a") as progress:
            progress.write(f"\n## 2026-11-20 - US-002\n- done in round {self.commits} — ünïcode\n")

    def bookkeeping(self) -> tuple[bytes, bytes]:
        return (self.root / PRD).read_bytes(), (self.root / PROGRESS).read_bytes()

    def head(self) -> str:
        return git(self.root, "rev-parse", "HEAD")

    def texts(self) -> dict[str, str]:
        """Return what lies in the tree, bookkeeping left out."""
        files = [path for path in (self.root / "src").rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_text() for path in files}

    def dirt(self) -> list[str]:
        """Return what git calls changed or untracked beside bookkeeping, and the locks that were left."""
        changed = git(self.root, "status", "--porcelain", "-uall").splitlines()
        left = [*(self.root / ".git").glob("*.lock"), *(self.root / ".git").glob("andon-*")]
        return [line for line in changed if not line.endswith(BOOKKEEPING)] + [path.name for path in left]


def reopened(prd: bytes) -> bytes:
    """Return prd.json with its second story not passed: nothing else may differ."""
    before, title, after = prd.partition(b'"US-002"')
    return before + title + after.replace(b'"passes": true', b'"passes": false', 1)


def test_a_rollback_stops_the_loop_first(andon: Yard) -> None:
    slug = andon.name("regretted")
    repository = Repository(andon.up.workspace / slug)
    root = repository.root
    andon.wait_project(slug)
    andon.configure(slug, agent(0, "go"))
    old = repository.texts()
    head = repository.commit("feat: [US-002] Something regretted", 20)
    repository.pass_story()
    prd, progress = repository.bookkeeping()
    pid = andon.start(slug)
    wait_for((root / "agents.ledger").exists, WITHIN_S)
    (root / "agents.ledger").unlink()
    wait_for(lambda: andon.status(slug)["running"], WITHIN_S)
    before = everything(root)
    status, said = andon.post(f"{slug}/rollback")
    assert (status, said["error"], said["success"]) == (409, "loop-running", False)
    assert (everything(root), ticks_of(pid) is None) == (before, False)

    asked = andon.posting(f"{slug}/rollback", {"stop_first": True, "expected_head": head})
    wait_for(lambda: andon.told(slug, "loop.stopping"), WITHIN_S)
    (root / "go").touch()
    status, said = asked.result(WITHIN_S)
    assert status == 200, said
    assert (said["reverted_commit"], said["story_reverted"], said["method"]) == (head, "US-002", "revert")
    assert working(root) == []
    assert (said["new_commit"], repository.texts()) == (repository.head(), old)
    assert repository.bookkeeping() == (reopened(prd), progress)
    assert git(root, "rev-parse", said["backup_ref"]) == head
    kind, payload = andon.only_end(slug)
    assert (kind, payload["pid"]) == ("loop.stopped", pid)
    status, said = andon.post(f"{slug}/rollback")
    assert (status, said["error"]) == (409, "already-rolled-back")


@pytest.mark.parametrize("has_pid_file", [True, False])
def test_a_loop_in_a_terminal_keeps_a_rollback_away(andon: Yard, has_pid_file: bool) -> None:
    slug = andon.name(f"terminal-{'with' if has_pid_file else 'without'}")
    repository = Repository(andon.up.workspace / slug)
    root = repository.root
    andon.wait_project(slug)
    repository.commit("feat: [US-002] Something", 20)
    repository.pass_story()
    loop = andon.run(root, "loop", str(root), "--agent", agent(0, "never"))
    wait_for((root / "agents.ledger").exists, WITHIN_S)
    if not has_pid_file:
        wait_for(lambda: andon.status(slug)["running"], WITHIN_S)
        (root / PID).unlink()
        wait_for(lambda: not andon.status(slug)["running"], WITHIN_S)
    before = everything(root)
    status, said = andon.post(f"{slug}/rollback")
    assert (status, said["error"], said["success"]) == (409, "loop-running", False)
    assert (said["reverted_commit"], said["story_reverted"]) == (None, None)
    assert (everything(root), loop.poll()) == (before, None)


def test_no_loop_was_told_to_have_ended_twice(andon: Yard) -> None:
    """Walks over what all journeys before it have left."""
    for slug in andon.slugs():
        kinds = [event["kind"] for event in andon.told(slug)]
        turns = [kind in ENDS for kind in kinds if kind in ENDS or kind == "loop.started"]
        # Begun, ended, begun, ended; the last may run still.
        assert turns == [bool(number % 2) for number in range(len(turns))], (slug, kinds)


class Bench:
    """A web process, and a worker that the test starts and kills itself."""

    def __init__(self, andon: Yard) -> None:
        self.andon = andon
        self.log = andon.up.home.parent / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start a worker, and wait until it takes orders."""
        before = self._adoptions()
        with self.log.open("ab") as log:
            words = [sys.executable, str(ROOT / "manage.py"), "worker"]
            self.worker = subprocess.Popen(words, env=self.andon.up.env, stdout=log, stderr=log)
        wait_for(lambda: self._adoptions() > before, WITHIN_S)

    def need(self) -> None:
        """Have a worker, whatever the test before this one has left."""
        if self.worker is None or self.worker.poll() is not None:
            self.begin()

    def _adoptions(self) -> int:
        return self.log.read_text(errors="replace").count("adopted:") if self.log.exists() else 0

    def kill(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    def wait_asked(self, slug: str, count: int) -> None:
        wait_for(lambda: len(self.andon.told(slug, "rollback.asked")) == count, WITHIN_S, 0.005)

    def ended(self, slug: str, count: int) -> list[dict[str, Any]]:
        """Wait until so many rollbacks are over; returns how each was told to have ended."""
        over = {"rollback.completed", "rollback.undone", "rollback.refused"}

        def found() -> list[dict[str, Any]]:
            events = [event for event in self.andon.told(slug, "rollback.") if event["kind"] in over]
            return events if len(events) >= count else []

        return wait_for(found, WITHIN_S)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with running(tmp_path_factory.mktemp("bench"), "--no-worker") as up, yard(up) as made:
        bench = Bench(made)
        try:
            yield bench
        finally:
            bench.kill()


def test_one_that_reaches_its_limit_while_no_worker_is_there_has_not_crashed(bench: Bench) -> None:
    slug = bench.andon.name("unseen")
    bench.need()
    root = bench.andon.project(slug, agent=agent(0, "go"))
    pid = bench.andon.start(slug, max_iterations=1)
    wait_for((root / "agents.ledger").exists, WITHIN_S)
    wait_for(lambda: bench.andon.status(slug)["running"], WITHIN_S)
    bench.kill()
    (root / "go").touch()
    wait_for(lambda: not working(root), WITHIN_S)
    bench.begin()
    kind, payload = bench.andon.only_end(slug)
    assert (kind, payload["pid"], payload["reason"]) == ("loop.stopped", pid, "max_iterations")


def test_nothing_is_started_while_a_rollback_waits_for_its_worker(bench: Bench) -> None:
    slug = bench.andon.name("waiting")
    bench.need()
    repository = Repository(bench.andon.up.workspace / slug)
    bench.andon.wait_project(slug)
    bench.andon.configure(slug, agent(0))
    old = repository.texts()
    repository.commit("feat: [US-002] Something", 20)
    repository.pass_story()
    bench.kill()
    asked = bench.andon.posting(f"{slug}/rollback")
    wait_for(lambda: bench.andon.told(slug, "rollback.asked"), WITHIN_S)
    for path in ("start", "rollback"):
        status, said = bench.andon.post(f"waiting/{path}")
        assert (status, said["error"], said["success"]) == (409, "rollback-in-progress", False)
    bench.begin()
    assert asked.result(WITHIN_S)[0] == 200
    assert repository.texts() == old
    bench.andon.start(slug, max_iterations=1)


def test_a_worker_killed_in_the_middle_of_rollbacks(bench: Bench, record_property: Any) -> None:
    slug = bench.andon.name("crashes")
    seed = int(os.environ.get("ANDON_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}: give it as ANDON_TEST_SEED to walk the same moments")  # noqa: T201
    dice = random.Random(seed)
    bench.need()
    repository = Repository(bench.andon.up.workspace / slug)
    bench.andon.wait_project(slug)

    def work() -> None:
        repository.commit(f"feat: [US-002] Work {repository.commits}")
        repository.pass_story()

    work()
    began = time.monotonic()
    assert bench.andon.post(f"{slug}/rollback")[0] == 200
    took_s = time.monotonic() - began
    outcomes = []
    for number in range(ROUNDS):
        if not outcomes or outcomes[-1] == "rollback.completed":
            work()
        head, parent = repository.head(), git(repository.root, "rev-parse", "HEAD^")
        trees = {name: git(repository.root, "rev-parse", f"{name}:src") for name in (head, parent)}
        prd, progress = repository.bookkeeping()
        asked = bench.andon.posting(f"{slug}/rollback", {"idempotency_key": f"round {number}"})
        bench.wait_asked(slug, number + 2)
        pause(dice.uniform(0, took_s))
        bench.kill()
        bench.begin()
        outcome = bench.ended(slug, number + 2)[-1]
        outcomes.append(outcome["kind"])
        status, said = asked.result(WITHIN_S)
        message = f"seed {seed}, round {number}: {outcomes}, {said}"
        assert outcome["kind"] in {"rollback.completed", "rollback.undone"}, message
        is_done = outcome["kind"] == "rollback.completed"
        assert (status == 200) is is_done, message
        assert repository.head() == (said["new_commit"] if is_done else head), message
        assert repository.texts() == repository.written[trees[parent if is_done else head]], message
        assert repository.dirt() == [], message
        assert repository.bookkeeping() == (reopened(prd) if is_done else prd, progress), message
    if outcomes[-1] == "rollback.completed":
        work()
    status, said = bench.andon.post(f"{slug}/rollback")
    assert (status, repository.head()) == (200, said["new_commit"]), said
    assert repository.dirt() == []
    done = outcomes.count("rollback.completed")
    figures = f"{done} of {ROUNDS} done, {ROUNDS - done} undone, {took_s:.2f} s each"
    record_property("summary", f"rollbacks whose worker was killed (seed {seed}): {figures}")


CLIENTS = 200
QUIET_S = 3


def counters(pid: int) -> dict[str, int]:
    """Return what a process has read so far, as the kernel counts it: bytes and calls, and bytes from a disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    counted = {name: int(number) for name, number in (line.split(": ") for line in lines)}
    return {name: counted[name] for name in ("rchar", "syscr", "read_bytes")}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_two_hundred_who_watch_cost_no_reading(bench: Bench, record_property: Any) -> None:
    """While nothing changes the worker is away: whoever opened a file of a project would be the web process."""
    slug = bench.andon.name("watched")
    bench.need()
    up = bench.andon.up
    root = bench.andon.project(slug)
    [web] = up.children("web")
    token = up.token()
    opens = Opens(root, root / "scripts/ralph")

    def passed(document: bytes) -> int:
        return next(row["storiesComplete"] for row in json.loads(document)["projects"] if row["slug"] == slug)

    async def watch() -> dict[str, Any]:
        readers = [Reader() for _ in range(CLIENTS)]
        following = [asyncio.create_task(each.follow(up.port, token)) for each in readers]

        def newest() -> set[bytes]:
            return {each.newest for each in readers}

        try:
            await until(lambda: all(newest()) and {passed(each) for each in newest()} == {1})
            await asyncio.to_thread(bench.kill)
            opens.take()
            before = counters(web)
            await asyncio.sleep(QUIET_S)
            after, quiet = counters(web), opens.take()
            await asyncio.to_thread(bench.begin)
            opens.take()
            began = time.monotonic()
            write_prd(root, "passed", "passed", "pending")
            await until(lambda: len(newest()) == 1 and passed(*newest()) == 2)
            took_s = time.monotonic() - began
            return {
                "clients": sum(not task.done() for task in following),
                "seconds_to_all": round(took_s, 2),
                "opened_while_quiet": quiet,
                "opened_for_the_flip": opens.take(),
                "web_while_quiet": {name: after[name] - before[name] for name in after},
            }
        finally:
            for task in following:
                task.cancel()
            for each in readers:
                if each.writer is not None:
                    each.writer.close()

    # A browser's test in this process may have left a loop running in this thread.
    with contextlib.closing(opens), ThreadPoolExecutor(1) as thread:
        seen = thread.submit(lambda: asyncio.run(watch())).result()
    figures = f"all have it {seen['seconds_to_all']} s after a flip, web read {seen['web_while_quiet']} while quiet"
    record_property("summary", f"{seen['clients']} SSE clients: {figures}")
    assert (seen["clients"], seen["opened_while_quiet"]) == (CLIENTS, [])
    assert seen["web_while_quiet"]["read_bytes"] == 0
    # The worker reads it; each client's own reading would be seen 200 times.
    assert 0 < len(seen["opened_for_the_flip"]) < CLIENTS / 4
