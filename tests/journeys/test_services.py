"""Managed services as they really behave: a real worker, real processes, sockets and files."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.services.machine import SHAPE, Machine, Refused, census, machine, pause, ticks_of
from tests.running import free_port, wait_for

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("services")) as made:
        made.up().project("demo")
        yield made


@pytest.fixture
def up(board: Machine, request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Machine]:
    """The board with its worker up, whatever the test before did to it; a second attempt has a board of its own."""
    if getattr(request.node, "execution_count", 1) > 1:
        with machine(tmp_path_factory.mktemp("again")) as own:
            own.up().project("demo")
            yield own
        return
    if ticks_of(board.worker) is None:
        board.up()
    yield board


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen]:
    """A process that is none of Andon's business, in a session of its own."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def declare(up: Machine, name: str, shape: str, *rest: object, wi: str = "", **fields) -> dict:
    """Declare one service of the project demo and wait until it is healthy."""
    up.ask("declare", project="demo", specs_=[up.spec(name, shape, *rest, **fields)], wi=wi)
    return up.wait_status("demo", name, "healthy")


def served(port: int, **fields) -> dict:
    return {"type": "http", "url": f"http://127.0.0.1:{port}/", "expect_status": 200, **fields}


def event(up: Machine, name: str, kind: str, within_s: float = 20) -> dict:
    """Wait for the first event of a kind about a service and return it."""

    def found() -> list[dict]:
        return [each for each in up.ask("events", subject=f"service:demo/{name}") if each["kind"] == kind]

    return wait_for(found, within_s, 0.02)[0]


def ended_at(fd: int) -> float:
    """Return when a process ended, in seconds since the epoch, as its pidfd told."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(10_000)
    return time.time()


def epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def in_s(seconds: float) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class TestCrash:
    def test_is_told_within_a_quarter_second_and_restarted_by_policy(self, up: Machine, record_property):
        port = free_port()
        row = declare(
            up, "web", "serve", port, ports=[port], restart="on-failure", healthcheck=served(port), attrs={"a": 1}
        )
        with socket.create_connection(("127.0.0.1", port), 5):
            pass
        fd = os.pidfd_open(row["pid"])
        try:
            os.kill(row["pid"], signal.SIGKILL)
            died = ended_at(fd)
        finally:
            os.close(fd)
        crashed = event(up, "web", "service.crashed")
        late_ms = (epoch(crashed["at"]) - died) * 1000
        record_property("summary", f"kill -9 of a service -> service.crashed: {late_ms:.1f} ms")
        assert late_ms < 2000
        assert crashed["payload"]["exit_code"] == -9
        assert crashed["payload"]["pid"] == row["pid"]
        again = wait_for(
            lambda: [
                fresh
                for fresh in [up.ask("row", project="demo", name="web")]
                if fresh["status"] == "healthy" and fresh["generation"] == 2
            ],
            20,
        )[0]
        assert again["pid"] != row["pid"]
        assert again["restarts"] == 1
        assert again["exits"][0]["code"] == -9
        up.ask("stop", project="demo", name="web")
        assert up.left(again) == []

    def test_that_comes_again_and_again_ends_the_tries_until_a_person_starts_it(self, up: Machine):
        up.ask("declare", project="demo", specs_=[up.spec("crasher", "exits", 3, restart="on-failure")])
        row = up.wait_status("demo", "crasher", "crash_loop", within_s=60)
        assert up.kinds("demo", "crasher").count("service.crash_loop") == 1
        assert up.kinds("demo", "crasher").count("service.crashed") == 6
        assert row["exit_code"] == 3
        assert "about to fail" in row["last_error"]
        assert up.left(row) == []
        pause(1)
        assert up.ask("row", project="demo", name="crasher")["generation"] == row["generation"]
        # It may have crashed again before the answer was read.
        assert up.ask("start", project="demo", name="crasher")["generation"] > row["generation"]
        # A person's start never counts: all tries are there again.
        again = up.wait_status("demo", "crasher", "crash_loop", within_s=60)
        assert again["generation"] == row["generation"] + 6
        assert up.kinds("demo", "crasher").count("service.crash_loop") == 2

    def test_of_a_leader_whose_child_lives_leaves_nothing(self, up: Machine):
        up.ask("declare", project="demo", specs_=[up.spec("leaver", "leaver")])
        row = up.wait_status("demo", "leaver", "exited", "failed")
        assert len(up.ledger("leaver")) == 2
        assert up.left(row) == []
        assert row["exit_code"] == 0
        assert row["status"] == "exited"


TREES = {
    "plain": 1,
    "stubborn": 1,
    "slow": 1,
    "escapee": 2,
    "daemon": 3,
    "bare": 4,
    "mute": 4,
    "renamed": 2,
    "spawner": 3,
}


class TestStop:
    @pytest.mark.parametrize("shape", TREES)
    def test_leaves_nothing(self, up: Machine, shape: str):
        declare(up, f"tree-{shape}", shape)
        wait_for(lambda: len(up.ledger(f"tree-{shape}")) >= TREES[shape], 20)
        living = up.living(f"tree-{shape}")
        assert living
        row = up.ask("stop", project="demo", name=f"tree-{shape}")
        assert row["status"] == "exited"
        assert up.left(row) == []
        assert up.kinds("demo", f"tree-{shape}")[-1] == "service.stopped"

    def test_of_all_at_once_leaves_nothing(self, up: Machine):
        names = [f"crowd-{shape}" for shape in TREES if shape != "spawner"]
        for at in range(0, len(names), 4):
            specs = [up.spec(name, name.removeprefix("crowd-")) for name in names[at : at + 4]]
            up.ask("declare", project="demo", specs_=specs)
        for name in names:
            up.wait_status("demo", name, "healthy")
        for name in names:
            wait_for(lambda name=name: len(up.ledger(name)) >= TREES[name.removeprefix("crowd-")], 20)
        rows = [each.result(60) for each in [up.send("stop", project="demo", name=name) for name in names]]
        assert [row["status"] for row in rows] == ["exited"] * len(names)
        assert [up.left(row) for row in rows] == [[]] * len(names)

    def test_reaches_a_program_behind_two_shells(self, up: Machine):
        spec = up.spec("nested", "stubborn")
        inner = " ".join(["python3", *spec["args"]])
        spec |= {"cmd": "sh", "args": ["-c", f"sh -c '{inner}; true'; true"]}
        up.ask("declare", project="demo", specs_=[spec])
        up.wait_status("demo", "nested", "healthy")
        [entry] = wait_for(lambda: up.ledger("nested"), 20)
        row = up.ask("row", project="demo", name="nested")
        assert entry.pid != row["pid"]
        row = up.ask("stop", project="demo", name="nested")
        assert up.left(row) == []

    def test_asks_first_and_kills_after_the_grace(self, up: Machine):
        declare(up, "deaf", "stubborn", stop_grace_s=1)
        wait_for(lambda: up.ledger("deaf"), 20)
        began = time.monotonic()
        row = up.ask("stop", project="demo", name="deaf")
        assert time.monotonic() - began >= 0.9
        assert row["exits"][0]["code"] == -9
        declare(up, "meek", "plain", stop_grace_s=30)
        began = time.monotonic()
        row = up.ask("stop", project="demo", name="meek")
        assert time.monotonic() - began < 10
        assert row["exits"][0]["code"] == -15

    def test_at_once_kills_without_grace(self, up: Machine):
        row = declare(up, "urgent", "escapee", stop_grace_s=60)
        wait_for(lambda: len(up.ledger("urgent")) == 2, 20)
        row = up.ask("stop", project="demo", name="urgent", at_once=True)
        assert row["status"] == "exited"
        assert up.left(row) == []

    def test_ends_in_order_what_was_never_healthy(self, up: Machine):
        never = {"type": "tcp", "port": free_port(), "timeout_s": 60}
        up.ask("declare", project="demo", specs_=[up.spec("newborn", "plain", healthcheck=never)])
        row = up.ask("stop", project="demo", name="newborn")
        assert row["status"] == "exited"
        assert up.left(row) == []


class TestPorts:
    @pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
    def test_held_by_a_stranger_is_refused(self, up: Machine, family: int, address: str):
        name = f"held-{'four' if family == socket.AF_INET else 'six'}"
        try:
            holder = socket.create_server((address, 0), family=family)
        except OSError:
            pytest.skip("This machine has no IPv6, so no stranger can hold a port there.")
        with holder:
            port = holder.getsockname()[1]
            with pytest.raises(Refused) as refused:
                up.ask("declare", project="demo", specs_=[up.spec(name, "serve", port, ports=[port])])
            assert refused.value.code == "port-conflict"
            assert refused.value.detail.startswith(f"port-conflict ({port}: ")
            assert str(os.getpid()) in refused.value.detail
            row = up.ask("row", project="demo", name=name)
            assert row["status"] == "failed"
            assert up.ledger(name) == []
            assert up.left(row) == []

    def test_in_time_wait_is_not_held(self, up: Machine):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                peer, _ = server.accept()
                peer.close()  # who closes first waits
                client.recv(1)
        with socket.socket() as probe, pytest.raises(OSError):
            probe.bind(("127.0.0.1", port))
        row = declare(up, "waiter", "serve", port, ports=[port], healthcheck=served(port))
        up.ask("stop", project="demo", name="waiter")
        assert up.left(row) == []


class TestStrangers:
    @pytest.mark.parametrize("wrong", ["older", "younger", "boot"])
    def test_with_the_pid_of_a_row_are_left_alone_by_a_stop(self, up: Machine, stranger, wrong: str):
        name = f"mistaken-{wrong}"
        declare(up, name, "plain")
        row = mistake(up, name, stranger.pid, wrong)
        up.ask("stop", project="demo", name=name)
        assert stranger.poll() is None
        assert ticks_of(stranger.pid) is not None
        if wrong != "younger":  # what began before its row's process is not its
            assert up.left(row) == []
        else:
            clean(up, name)

    @pytest.mark.parametrize("wrong", ["older", "younger", "boot"])
    def test_with_the_pid_of_a_row_are_left_alone_by_a_new_worker(self, up: Machine, stranger, wrong: str):
        name = f"adopted-{wrong}"
        declare(up, name, "plain", restart="never")
        up.kill_worker()
        mistake(up, name, stranger.pid, wrong)
        up.up()
        row = up.wait_status("demo", name, "exited", "failed", "lost")
        assert row["status"] == ("lost" if wrong == "boot" else "failed")
        pause(0.5)
        assert stranger.poll() is None
        clean(up, name)


def mistake(up: Machine, name: str, pid: int, wrong: str) -> dict:
    """Write a stranger's pid into a row: with the start of one that was before or after it, or of another boot."""
    row = up.ask("row", project="demo", name=name)
    ticks = ticks_of(pid)
    fields = {"older": {"start_ticks": ticks - 5000}, "younger": {"start_ticks": ticks + 5000}}
    boot = {"start_ticks": ticks, "boot_id": "00000000-0000-0000-0000-000000000000"}
    assert up.ask("update", pk=row["id"], pid=pid, **fields.get(wrong, boot))
    return row


def clean(up: Machine, name: str) -> None:
    for entry in up.living(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)


def unrecord(up: Machine, row: dict) -> None:
    """Make a row what it is when its worker was killed between the start of its process and the record of it."""
    nobody = {"pid": None, "start_ticks": None, "boot_id": ""}
    assert up.ask("update", pk=row["id"], status="starting", since=in_s(0), next_probe_at=None, **nobody)


class TestAdoption:
    def test_keeps_what_lives_and_tells_of_what_died_meanwhile(self, up: Machine, tmp_path: Path):
        said = tmp_path / "code"
        told = declare(up, "told", "told", said)
        steady = declare(up, "steady", "escapee", restart="always")
        wait_for(lambda: len(up.ledger("steady")) == 2, 20)
        fallen = declare(up, "fallen", "plain")
        revived = declare(up, "revived", "plain", restart="on-failure")
        up.kill_worker()
        for row in (fallen, revived):
            os.kill(row["pid"], signal.SIGKILL)
            wait_for(lambda pid=row["pid"]: ticks_of(pid) is None, 10)
        up.up()
        for row in (told, steady):
            assert event(up, row["name"], "service.adopted")["payload"]["pid"] == row["pid"]
            fresh = up.ask("row", project="demo", name=row["name"])
            assert (fresh["pid"], fresh["generation"], fresh["status"]) == (row["pid"], 1, "healthy")
        row = up.wait_status("demo", "fallen", "failed")
        assert (row["exit_code"], row["exit_cause"]) == (None, "unobserved")
        assert "service.adopted" not in up.kinds("demo", "fallen")
        row = up.wait_status("demo", "revived", "healthy")
        assert row["generation"] == 2
        [entry] = wait_for(lambda: up.living("revived"), 20)
        assert entry.pid == row["pid"]
        said.write_text("7")
        row = up.wait_status("demo", "told", "failed")
        assert (row["exit_code"], row["exit_cause"]) == (7, "crash")
        assert [entry.role for entry in up.living("steady")] == ["leader", "child"]
        for name in ("steady", "revived"):
            row = up.ask("stop", project="demo", name=name)
            assert up.left(row) == []

    def test_takes_over_a_start_that_nobody_had_recorded_yet(self, up: Machine):
        row = declare(up, "unrecorded", "escapee", restart="always")
        wait_for(lambda: len(up.ledger("unrecorded")) == 2, 20)
        up.kill_worker()
        unrecord(up, row)
        up.up()
        fresh = up.wait_status("demo", "unrecorded", "healthy")
        assert (fresh["pid"], fresh["start_ticks"], fresh["generation"]) == (row["pid"], row["start_ticks"], 1)
        assert len(up.ledger("unrecorded")) == 2
        row = up.ask("stop", project="demo", name="unrecorded")
        assert up.left(row) == []

    @pytest.mark.parametrize("shape", ["bare", "leaver"])
    def test_ends_what_such_a_start_left_before_it_starts_anew(self, up: Machine, shape: str):
        name = f"half-{shape}"
        up.ask("declare", project="demo", specs_=[up.spec(name, shape, stop_grace_s=60)])
        first = wait_for(lambda: len(up.ledger(name)) == {"bare": 4, "leaver": 2}[shape] and up.ledger(name), 20)
        up.kill_worker()
        with contextlib.suppress(ProcessLookupError):
            os.kill(first[0].pid, signal.SIGKILL)
        wait_for(lambda: not first[0].is_alive, 10)
        assert [each for each in first if each.is_alive]
        unrecord(up, up.ask("row", project="demo", name=name))
        up.up()
        wait_for(lambda: len(up.ledger(name)) > len(first), 20)
        assert [each for each in first if each.is_alive] == []
        up.ask("stop", project="demo", name=name, at_once=True)
        assert up.left(up.ask("row", project="demo", name=name)) == []

    def test_goes_on_with_a_stop_that_was_under_way(self, up: Machine):
        declare(up, "going", "stubborn", stop_grace_s=2)
        wait_for(lambda: up.ledger("going"), 20)
        stopping = up.send("stop", project="demo", name="going")
        up.wait_status("demo", "going", "stopping")
        up.kill_worker()
        up.up()
        row = up.wait_status("demo", "going", "exited", within_s=15)
        assert up.left(row) == []
        with contextlib.suppress(Refused):
            stopping.result(30)


class TestExpiry:
    def test_is_kept_to_the_second_and_extended_and_kept_by_a_restart(self, up: Machine):
        row = declare(up, "brief", "plain", ttl_minutes=60)
        up.ask("update", pk=row["id"], expires_at=in_s(120), warn_at=in_s(0.2))
        told = event(up, "brief", "service.expiring")
        longer = up.ask("extend", project="demo", name="brief", minutes=30)
        assert 31 * 60 < epoch(longer["expires_at"]) - time.time() <= 32 * 60
        again = up.ask("restart", project="demo", name="brief")
        assert again["generation"] == 2
        assert again["expires_at"] == longer["expires_at"]
        up.wait_status("demo", "brief", "healthy")
        deadline = in_s(2)
        up.ask("update", pk=row["id"], expires_at=deadline)
        row = up.wait_status("demo", "brief", "expired")
        stopping = event(up, "brief", "service.expired")
        late_s = epoch(stopping["at"]) - epoch(deadline)
        assert 0 <= late_s < 4
        assert row["exit_cause"] == "ttl"
        assert up.left(row) == []
        kinds = up.kinds("demo", "brief")
        assert kinds.count("service.expiring") == 1
        assert kinds.count("service.extended") == 1
        assert told["payload"]["expires_at"]


class TestHealth:
    def test_that_is_never_there_ends_the_service_with_its_last_words(self, up: Machine):
        port = free_port()
        spec = up.spec("mute", "spam", 0.001, healthcheck={"type": "tcp", "port": port, "timeout_s": 1.5})
        spec |= {"cmd": "sh", "args": ["-c", "echo my-last-words; exec python3 " + " ".join(spec["args"])]}
        up.ask("declare", project="demo", specs_=[spec | {"stop_grace_s": 0}])
        row = up.wait_status("demo", "mute", "failed")
        assert row["exit_cause"] == "probe"
        assert row["last_error"].startswith("not healthy within 1.5 s")
        assert up.left(row) == []
        stopping = event(up, "mute", "service.stopping")
        assert "refused" in stopping["payload"]["reason"].lower()

    def test_keeps_the_tail_of_the_log_of_one_that_is_killed_for_it(self, up: Machine):
        check = {"type": "tcp", "port": free_port(), "timeout_s": 1.5}
        spec = up.spec("wordy", "plain", healthcheck=check)
        spec |= {"cmd": "sh", "args": ["-c", "echo my-last-words; exec python3 " + " ".join(spec["args"])]}
        up.ask("declare", project="demo", specs_=[spec])
        row = up.wait_status("demo", "wordy", "failed")
        assert "my-last-words" in row["last_error"]
        assert up.left(row) == []

    def test_that_is_lost_and_found_again_is_told(self, up: Machine):
        port = free_port()
        status = up.folder / f"moody.ledger.{up.token('moody')}.status"
        status.parent.mkdir(parents=True, exist_ok=True)
        check = served(port, period_s=1, failure_threshold=2)
        row = declare(up, "moody", "serve", port, ports=[port], healthcheck=check)
        status.write_text("503")
        sick = up.wait_status("demo", "moody", "unhealthy")
        assert (sick["pid"], sick["misses"]) == (row["pid"], 2)
        status.write_text("200")
        well = up.wait_status("demo", "moody", "healthy")
        assert (well["pid"], well["generation"]) == (row["pid"], 1)
        kinds = up.kinds("demo", "moody")
        assert kinds.count("service.unhealthy") == 1
        assert kinds.count("service.healthy") == 2
        up.ask("stop", project="demo", name="moody")
        assert up.left(well) == []


class TestDeclarations:
    def test_a_batch_whose_second_cannot_start_is_rolled_back(self, up: Machine):
        # On the allowlist, and rarely installed.
        missing = next(name for name in ("maestro", "emulator", "powershell") if not installed(name))
        specs = [
            up.spec("batch-one", "escapee"),
            up.spec("batch-two", "plain") | {"cmd": missing},
            up.spec("batch-three", "plain"),
        ]
        with pytest.raises(Refused) as refused:
            up.ask("declare", project="demo", specs_=specs)
        assert refused.value.code == "start-failed"
        assert missing in refused.value.detail
        first = up.wait_status("demo", "batch-one", "failed")
        assert "batch-two could not be started" in first["last_error"]
        assert up.left(first) == []
        third = up.wait_status("demo", "batch-three", "failed")
        assert third["started_at"] is None
        assert up.ledger("batch-three") == []

    def test_the_same_again_is_kept_and_another_of_the_same_owner_replaces_it(self, up: Machine):
        row = declare(up, "kept", "escapee", wi="t_1")
        again = up.ask("declare", project="demo", specs_=[up.spec("kept", "escapee")], wi="t_1")
        assert again["warnings"] == ["already-running (kept)"]
        assert (again["rows"][0]["pid"], again["rows"][0]["generation"]) == (row["pid"], 1)
        with pytest.raises(Refused) as refused:
            up.ask("declare", project="demo", specs_=[up.spec("kept", "plain")], wi="t_2")
        assert refused.value.code == "name-already-active"
        wait_for(lambda: len(up.ledger("kept")) == 2, 20)
        up.ask("declare", project="demo", specs_=[up.spec("kept", "plain")], wi="t_1")
        fresh = wait_for(
            lambda: [
                each
                for each in [up.ask("row", project="demo", name="kept")]
                if each["generation"] == 2 and each["status"] == "healthy"
            ],
            20,
        )[0]
        assert fresh["args"][-1] == "plain"
        # Well by its probe, it may still be about to enter itself.
        living = wait_for(lambda: up.living("kept"), 20)
        assert [(entry.pid, entry.shape) for entry in living] == [(fresh["pid"], "plain")]
        row = up.ask("stop", project="demo", name="kept")
        assert up.left(row) == []

    def test_of_a_project_that_is_gone_are_stopped(self, up: Machine):
        root = up.project("gone")
        up.ask("declare", project="gone", specs_=[up.spec("orphan", "escapee")])
        row = up.wait_status("gone", "orphan", "healthy")
        (root / ".git").rmdir()
        root.rmdir()
        wait_for(lambda: "gone" not in up.ask("projects"), 30)
        assert up.ask("row", project="gone", name="orphan")["status"] == "healthy"
        up.ask("update_project", slug="gone", missing_since=in_s(-31))
        stopped = wait_for(
            lambda: [
                each
                for each in up.ask("events", subject="service:gone/orphan")
                if each["kind"] == "service.stopped" and each["payload"]["cause"] == "project-removed"
            ],
            30,
        )
        assert stopped
        assert up.left(row) == []


def installed(name: str) -> bool:
    return any(os.access(Path(folder) / name, os.X_OK) for folder in os.environ["PATH"].split(":"))


class TestLogs:
    def test_of_a_flood_stay_bounded_and_delay_nobody(self, up: Machine, record_property):
        row = declare(up, "flood", "spam", 50)
        path = up.home / "logs/services" / row["log_name"]
        most, until = 0, time.monotonic() + 6
        waits = []
        while time.monotonic() < until:
            most = max(most, path.stat().st_blocks * 512)
            began = time.monotonic()
            declare(up, "bystander", "plain")
            waits.append(time.monotonic() - began)
            up.ask("stop", project="demo", name="bystander", at_once=True)
            pause(0.2)
        written = path.stat().st_size
        record_property("summary", f"{written >> 20} MiB of log written, {most >> 20} MiB kept at most")
        fresh = up.ask("row", project="demo", name="flood")
        assert (fresh["status"], fresh["pid"]) == ("healthy", row["pid"])
        assert written > 100 << 20
        assert most < 200 << 20
        assert most < written * 0.7
        assert max(waits) < 10
        up.ask("stop", project="demo", name="flood")
        assert up.left(row) == []

    def test_on_a_full_disk_keep_nothing_from_being_stopped(self, tmp_path: Path):
        with machine(tmp_path / "full") as made, small_disk(made.home / "logs", "4m") as disk:
            made.up().project("demo")
            declare(made, "before", "escapee")
            filled = fill(disk)
            # It cannot write its log and says so by its end; the others are not concerned.
            made.ask("declare", project="demo", specs_=[made.spec("noisy", "spam", 1), made.spec("quiet", "plain")])
            assert made.left(made.wait_status("demo", "noisy", "failed")) == []
            made.wait_status("demo", "quiet", "healthy")
            for name in ("before", "quiet"):
                row = made.ask("stop", project="demo", name=name)
                assert row["status"] == "exited"
                assert made.left(row) == []
            host = made.ask("worker")
            assert host["status"] == "ticking"
            assert {name: job["error"] for name, job in host["jobs"].items() if job["error"]} == {}
            assert "Traceback" not in made.words()
            filled.unlink()
            declare(made, "after", "plain")
            row = made.ask("stop", project="demo", name="after")
            assert row["status"] == "exited"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system in memory on a folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"A full disk needs a small file system of its own, and only root may mount one ({done.stderr}).")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    path = disk / "filler"
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"x" * 4096):
            pass
    return path


class TestHomes:
    def test_on_one_machine_do_not_see_each_other(self, up: Machine, tmp_path: Path):
        with machine(tmp_path / "other", env={"ANDON_WORKSPACE": str(up.workspace)}) as other:
            other.up().wait_project("demo")
            for each in (up, other):
                each.ask("declare", project="demo", specs_=[each.spec("twin", "bare")])
                each.wait_status("demo", "twin", "healthy")
                wait_for(lambda each=each: len(each.ledger("twin")) == 4, 20)
            other.kill_worker()
            other.up()
            theirs = other.wait_status("demo", "twin", "healthy")
            assert len(up.living("twin")) == 3
            up.kill_worker()
            up.up()
            assert len(other.living("twin")) == 3
            row = up.ask("stop", project="demo", name="twin")
            assert up.left(row) == []
            assert len(other.living("twin")) == 3
            fresh = other.ask("row", project="demo", name="twin")
            assert (fresh["status"], fresh["pid"]) == ("healthy", theirs["pid"])
            row = other.ask("stop", project="demo", name="twin")
            assert other.left(row) == []


def test_no_sweep_failed(up: Machine):
    assert "Traceback" not in up.words()


def test_the_scripts_of_the_journeys_say_what_they_start(tmp_path: Path):
    """The ledger, on which all the others rely, misses nobody."""
    done = subprocess.run(
        [sys.executable, "-IS", str(SHAPE), str(tmp_path / "a.ledger"), "token", "exits", "5"], check=False
    )
    assert done.returncode == 5
    role, _, _, _, shape = (tmp_path / "a.ledger").read_text().split()
    assert (role, shape) == ("leader", "exits")
    assert not [seen for seen in census() if str(tmp_path) in " ".join(seen.argv)]
