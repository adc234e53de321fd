"""`up` as a person meets it."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.projects.files import write_log, write_prd, write_project
from tests.running import ROOT, Up, running, wait_for

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def andon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("up")) as up:
        yield up


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code


@pytest.mark.once
def test_it_says_where_it_is_and_how_to_sign_in(andon: Up):
    text = andon.log.read_text()
    assert f"Andon is ready at {andon.url}" in text
    assert f"{andon.url}{andon.link}" in text
    assert status(andon.url + "/readyz") == 200


@pytest.mark.once
def test_home_and_secrets_are_private(andon: Up):
    assert andon.home.stat().st_mode & 0o777 == 0o700
    assert (andon.home / "secret_key").stat().st_mode & 0o777 == 0o600


@pytest.mark.once
def test_a_second_up_on_the_same_home_is_refused(andon: Up):
    second = andon.manage("up", "--port", "0", check=False)
    assert second.returncode != 0
    again = andon.manage("up", check=False)
    assert again.returncode == 75
    assert "is up already" in again.stderr
    assert str(andon.process.pid) in again.stderr


@pytest.mark.once
def test_a_second_worker_on_the_same_home_is_refused(andon: Up):
    second = andon.manage("worker", check=False)
    assert second.returncode == 75
    assert "Another worker" in second.stderr


def test_a_project_appears_and_changes_within_a_second(andon: Up):
    root = write_project(andon.workspace / "garden", ("passed", "pending"))
    found = wait_for(lambda: andon.events("project.found"), 3)
    assert found[-1]["subject"] == "project:garden"
    row = andon.get("/api/ralph/status")["projects"][0]
    assert (row["storiesTotal"], row["storiesComplete"]) == (2, 1)
    write_prd(root, "passed", "passed")
    passed = wait_for(lambda: andon.events("story.passed"), 3, 0.02)
    assert passed[-1]["subject"] == "story:garden/US-002"


@pytest.mark.once
def test_a_real_loop_is_seen_starting_and_crashing(andon: Up):
    root = write_project(andon.workspace / "kiln", ("pending",))
    loop = subprocess.Popen(["sleep", "60"], cwd=root)
    try:
        (root / "scripts/ralph/.ralph.pid").write_text(str(loop.pid))
        wait_for(lambda: [e for e in andon.events("loop.started") if e["project"] == "kiln"], 4)
        write_log(root, 1)
        wait_for(lambda: andon.get("/api/ralph/kiln/iterations")["total"], 4)
    finally:
        loop.kill()
        loop.wait()
    crashed = wait_for(lambda: [e for e in andon.events("loop.crashed") if e["project"] == "kiln"], 5)
    assert crashed[0]["payload"]["pid"] == loop.pid


def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(andon: Up):
    [worker] = andon.children("worker")
    os.kill(worker, signal.SIGKILL)
    root = write_project(andon.workspace / "while-it-was-away", ("pending",))
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == root.name], 15)
    assert andon.children("worker") != [worker]
    assert "worker ended with SIGKILL" in andon.log.read_text()
    wait_for(lambda: status(andon.url + "/readyz") == 200, 20)


def test_a_web_process_that_is_killed_is_started_again(andon: Up):
    [web] = andon.children("web")
    os.kill(web, signal.SIGKILL)
    wait_for(lambda: andon.children("web") not in ([], [web]), 15)
    wait_for(lambda: _answers(andon), 20)


def _answers(andon: Up) -> bool:
    try:
        return status(andon.url + "/healthz") == 200
    except OSError:
        return False


@pytest.mark.once
def test_ctrl_c_stops_both_within_five_seconds(tmp_path: Path):
    with running(tmp_path) as up:
        started = time.monotonic()
        code = up.stop(signal.SIGINT)
        assert code == 0
        assert time.monotonic() - started < 5
        assert up.log.read_text().rstrip().endswith("stopped")
        assert up.children("web") == up.children("worker") == []
        # The home is free again, nobody has to sign in with a link made twice.
        up.start()
        assert up.stop(signal.SIGTERM) == 0


@pytest.mark.once
def test_children_do_not_outlive_an_up_that_is_killed(tmp_path: Path):
    with running(tmp_path) as up:
        children = up.children("web") + up.children("worker")
        assert len(children) == 2
        up.process.kill()
        up.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 8)
        up.start()


def test_the_worker_gone_turns_the_tick_red(tmp_path: Path):
    with running(tmp_path, start=False) as up:
        up.start()
        [worker] = up.children("worker")
        assert _woken(up)
        try:
            wait_for(lambda: _frozen_between_transactions(up, worker), 30)
            wait_for(lambda: up.events("worker.silent"), 60, 0.5)
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_for(lambda: up.events("worker.recovered"), 30, 0.2)


def _frozen_between_transactions(up: Up, worker: int) -> bool:
    """Freeze the worker where it holds no lock, which nobody else could then take, as no process that died would."""
    os.kill(worker, signal.SIGSTOP)
    time.sleep(0.2)
    database = up.env.get("DATABASE_URL")
    try:
        if database:
            import psycopg

            with psycopg.connect(database) as connection:
                connection.execute("SET lock_timeout = '500ms'")
                connection.execute("SELECT 1 FROM services_workerhost FOR UPDATE")
        else:
            connection = sqlite3.connect(up.home / "andon.sqlite3", timeout=0.5, isolation_level=None)
            with contextlib.closing(connection):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
    except Exception as error:
        if "lock" not in str(error):
            raise
        os.kill(worker, signal.SIGCONT)
        return False
    return True


def _woken(up: Up) -> bool:
    """Open a stream, as any page would: the relay that looks after the worker starts with its first reader."""
    request = urllib.request.Request(up.url + "/api/events/stream", headers={"Authorization": f"Bearer {up.token()}"})
    with urllib.request.urlopen(request, timeout=5) as stream:
        return stream.readline().startswith(b"retry")


@pytest.mark.once
@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"ANDON_PORT": "many"}, "Give a number from 1 to 65535"),
        ({"ANDON_BIND": "0.0.0.0"}, "Set ANDON_ALLOWED_HOSTS"),
        ({"ANDON_WORKSPACE": "/"}, "Give the directory that holds your projects"),
        ({"REDIS_URL": "redis://127.0.0.1:6379/9", "DATABASE_URL": ""}, "set DATABASE_URL"),
        ({"ANDON_HOME": "/proc/nowhere"}, "Give a directory that this user can write"),
    ],
)
def test_nonsense_is_refused_with_a_sentence_and_no_traceback(tmp_path: Path, env: dict[str, str], sentence: str):
    result = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "up"],
        env={**os.environ, "ANDON_HOME": str(tmp_path / "home"), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.once
def test_a_taken_port_is_told(tmp_path: Path, andon: Up):
    with running(tmp_path, start=False) as up:
        result = up.manage("up", "--port", str(andon.port), check=False)
    assert result.returncode == 1
    assert f"Port {andon.port} on 127.0.0.1 is taken" in result.stderr


def test_events_reach_a_websocket(andon: Up):
    from websockets.sync.client import connect

    head = andon.get("/api/events")["cursor"]
    address = f"ws://127.0.0.1:{andon.port}/ws/events?token={andon.token()}&since={head}&kind=project."
    with connect(address) as socket:
        write_project(andon.workspace / "heard", ("pending",))
        while not (frame := json.loads(socket.recv(timeout=5)))["events"]:
            pass
    assert frame["events"][0]["subject"] == "project:heard"
    assert frame["cursor"] >= frame["events"][0]["id"]


@pytest.mark.once
def test_beyond_loopback_it_becomes_ready_and_says_where_people_go(tmp_path: Path):
    env = {"ANDON_BIND": "0.0.0.0", "ANDON_ALLOWED_HOSTS": "andon.example.org"}
    with running(tmp_path, env=env) as up:
        text = up.log.read_text()
        assert "Andon is ready at https://andon.example.org\n" in text
        assert "https://andon.example.org/login/link/" in text
        assert up.manage("sign-in-link", "admin").stdout.startswith("https://andon.example.org/login/link/")


READER = """
from django.utils import timezone
from projects.events import SWEEP, record, writing
import time
for turn in range(40):
    time.sleep(0.2)
    with writing():
        for number in range(1000):
            record("bench.big", "bench:1", by=SWEEP, now=timezone.now(), text="x" * 1500)
"""


@pytest.mark.once
def test_readers_that_stop_reading_cost_no_memory_and_hold_up_nobody(tmp_path: Path):
    import socket

    import psutil
    from websockets.sync.client import connect

    with running(tmp_path) as up:
        [web] = up.children("web")
        stuck = []
        for path in ("/ws/events", "/api/events/stream", "/api/events/stream"):
            peer = socket.create_connection(("127.0.0.1", up.port))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lines = [f"GET {path}?since=0&token={up.token()} HTTP/1.1", f"Host: 127.0.0.1:{up.port}"]
            lines += [f"Authorization: Bearer {up.token()}"]
            if path.startswith("/ws"):
                lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
                lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
            peer.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            assert b" 101 " in (head := peer.recv(200)) or b" 200 " in head
            stuck.append(peer)
        before = psutil.Process(web).memory_info().rss
        with connect(f"ws://127.0.0.1:{up.port}/ws/events?token={up.token()}&kind=bench.", max_size=None) as reader:
            writer = subprocess.Popen([sys.executable, str(ROOT / "manage.py"), "shell", "-c", READER], env=up.env)
            seen = 0
            while seen < 40_000:
                frame = json.loads(reader.recv(timeout=20))
                assert "reset" not in frame
                seen += len(frame["events"])
            assert writer.wait(10) == 0
        time.sleep(2)
        grown = psutil.Process(web).memory_info().rss - before
        for peer in stuck:
            peer.close()
        # 64 MB of events were for each of the three. A megabyte may wait in each connection, 32 shared frames before
        # it, and the interpreter keeps what the reader who kept up made it allocate.
        assert grown < 100e6, grown
