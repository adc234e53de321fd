"""The worker is killed at any moment, again and again: nothing doubled, nothing unowned, no stranger touched.

`ANDON_TEST_CHAOS` says how many rounds (20, on PostgreSQL 8), `ANDON_TEST_SEED` repeats what a failure names.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.journeys.services.machine import ENDED, UP, Machine, Refused, census, machine, pause, ticks_of
from tests.running import wait_for

pytestmark = pytest.mark.journey

ROUNDS = int(os.environ.get("ANDON_TEST_CHAOS", "8" if "DATABASE_URL" in os.environ else "20"))
SEED = int(os.environ.get("ANDON_TEST_SEED", str(random.randrange(10**6))))
# On a quiet machine five seconds; half of it may be another's.
TRUE_WITHIN_S = 20
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"restart": "always"},
    "stubborn": {},
    "slow": {"restart": "on-failure"},
    "escapee": {"restart": "on-failure"},
    "bare": {},
    "mute": {},
    "daemon": {"restart": "always"},
    "leaver": {},
    "renamed": {"restart": "on-failure"},
}
# What it leaves is known by its session alone: of a leader that died while nobody watched, that is no proof.
NEVER_CRASHED = {"mute"}


@pytest.fixture
def board(tmp_path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        made.up().project("demo")
        yield made


@pytest.fixture
def bystanders(board: Machine) -> Iterator[list[subprocess.Popen]]:
    """Processes that look like ours from afar: the same directory, nearly our marker, a log that they read."""
    almost = [f"{board.node}x.1.1", f"x{board.node}.1.1", f"{board.node}.1", f"{board.node}.1.x", f"{board.node}.1.1 "]
    started = [
        subprocess.Popen(["sleep", "1000"], cwd=board.workspace / "demo", env={**os.environ, "ANDON_SERVICE": marker})
        for marker in almost
    ]
    log = board.home / "logs/services/1-plain.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.touch(0o600)
    with log.open("rb") as reading:
        started.append(subprocess.Popen(["sleep", "1000"], stdin=reading, start_new_session=True))
    started.append(subprocess.Popen(["sleep", "1000"], env={"ANDON_NODE": board.node}, start_new_session=True))
    yield started
    for each in started:
        each.kill()
        each.wait()


def untrue(board: Machine) -> list[str]:
    """Return what is not (yet) true of the rows, by our own look at /proc and the ledgers."""
    rows = {row["id"]: row for row in board.ask("rows")}
    found: list[str] = []
    leaders: dict[int, tuple[int, dict[str, Any]]] = {}
    logs: dict[tuple[int, int], dict[str, Any]] = {}
    seen = census()
    markers = {each.pid: each.marker for each in seen}
    for row in rows.values():
        name = f"{row['name']} ({row['status']}, generation {row['generation']})"
        living = board.living(row["name"])
        leaders |= {each.pid: (each.ticks, row) for each in board.ledger(row["name"]) if each.role == "leader"}
        with contextlib.suppress(OSError):
            log = (board.home / "logs/services" / row["log_name"]).stat()
            logs[log.st_dev, log.st_ino] = row
        if row["status"] in UP - {"starting"}:
            mine = {(each.pid, each.ticks) for each in living if each.role == "leader"}
            if mine != {(row["pid"], row["start_ticks"])}:
                found.append(f"{name} should be led by {row['pid']} and is by {mine}")
            if markers.get(row["pid"]) != f"{row['marker']}{row['generation']}":
                found.append(f"{name}: {row['pid']} is marked {markers.get(row['pid'])}")
            found += [f"{name}: {each} is older" for each in living if each.generation != row["generation"]]
        elif row["status"] in ENDED | {"backoff"}:
            found += [f"{name}: {each} lives" for each in living]
        else:
            found.append(f"{name} is under way")
    for each in seen:
        node, _, rest = each.marker.partition(".")
        key, _, generation = rest.partition(".")
        if node == board.node and key.isdigit() and generation.isdigit():
            found += unowned(rows.get(int(key)), f"{each} by its marker", generation=int(generation))
        for place in each.outputs & logs.keys():
            found += unowned(logs[place], f"{each} by its log")
        if each.session in leaders and each.ticks >= leaders[each.session][0]:
            found += unowned(leaders[each.session][1], f"{each} by its session", leader=each.session)
    return found


def unowned(
    row: dict[str, Any] | None, who: str, *, generation: int | None = None, leader: int | None = None
) -> list[str]:
    if row is None or row["status"] not in UP:
        return [f"nobody owns {who}"]
    if generation not in {None, row["generation"]} or leader not in {None, row["pid"]}:
        return [f"generation {row['generation']} of {row['name']} does not own {who}"]
    return []


def disturb(board: Machine, rng: random.Random) -> list[Future[Any]]:
    """Give orders of all kinds, and now and then kill a leader."""
    given = []
    for name in SHAPES:
        verb = rng.choice(["start", "start", "restart", "stop", "kill", "crash", ""])
        if verb == "crash":
            for entry in board.living(name):
                if entry.role == "leader" and name not in NEVER_CRASHED:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(entry.pid, signal.SIGKILL)
        elif verb == "kill":
            given.append(board.send("stop", project="demo", name=name, at_once=True))
        elif verb:
            given.append(board.send(verb, project="demo", name=name))
    if rng.random() < 0.5:
        given.append(board.send("declare", project="demo", specs_=batch(board, rng), wi="t_1"))
    return given


def batch(board: Machine, rng: random.Random) -> list[dict[str, Any]]:
    """Return three services that are declared together, each time a little different; some cannot be started."""
    specs = [board.spec(name, "escapee", attrs={"n": rng.randrange(3)}) for name in ("one", "two", "three")]
    if rng.random() < 0.5:
        specs[1]["cmd"] = next(
            name
            for name in ("maestro", "emulator", "powershell")
            if not any(os.access(f"{folder}/{name}", os.X_OK) for folder in os.environ["PATH"].split(":"))
        )
    return specs


def refusals(given: list[Future[Any]]) -> list[str]:
    """Return what broke; a refusal in such times is in order."""
    broken = []
    for future in given:
        try:
            future.result(60)
        except Refused as refusal:
            if refusal.code == "broken":
                broken.append(refusal.detail)
    return broken


def settled(board: Machine, within_s: float) -> float:
    """Wait until all is true twice in a row; returns the seconds it took."""
    began = time.monotonic()
    found = ["not looked yet"]
    while True:
        took = time.monotonic() - began
        found = untrue(board)
        if not found:
            pause(0.2)
            if not (found := untrue(board)):
                return took
        if took > within_s:
            raise AssertionError("\n".join([*found, *history(board, found), board.words()[-6000:]]))
        pause(0.05)


def history(board: Machine, found: list[str]) -> list[str]:
    """Return what is known of the services that are not as they should be."""
    told = []
    for row in board.ask("rows"):
        if any(line.startswith(f"{row['name']} (") for line in found):
            told.append(str({name: row[name] for name in ("id", "status", "pid", "since", "exits", "last_error")}))
            told += [str(event) for event in board.ask("events", subject=f"service:demo/{row['name']}")[-12:]]
            told += [str(entry) for entry in board.ledger(row["name"])[-8:]]
    return told


def test_a_worker_killed_at_any_point_leaves_no_lie(board: Machine, bystanders, record_property):
    rng = random.Random(SEED)
    for at in range(0, len(SHAPES), 4):
        names = list(SHAPES)[at : at + 4]
        board.ask("declare", project="demo", specs_=[board.spec(name, name, **SHAPES[name]) for name in names])
    settled(board, 60)
    took = []
    for number in range(ROUNDS):
        given = disturb(board, rng)
        pause(rng.uniform(0, 1.5))
        board.kill_worker()
        if rng.random() < 0.3:
            given += disturb(board, rng)
        board.up()
        try:
            took.append(settled(board, TRUE_WITHIN_S))
        except AssertionError as lie:
            raise AssertionError(f"ANDON_TEST_SEED={SEED}, round {number}: {lie}") from None
        assert refusals(given) == []
        assert [each.args for each in bystanders if each.poll() is not None] == []
    mean, most = sum(took) / ROUNDS, max(took)
    record_property("summary", f"{ROUNDS} workers killed: true again {mean:.2f} s after adoption, at most {most:.2f} s")
    for row in board.ask("rows"):
        with contextlib.suppress(Refused):
            board.ask("stop", project="demo", name=row["name"], at_once=True)
        wait_for(lambda row=row: board.ask("row", project="demo", name=row["name"])["status"] in ENDED, 20)
        assert board.left(row) == []
    assert [each.args for each in bystanders if ticks_of(each.pid) is None] == []
    assert "Traceback" not in board.words()
