"""The pid file of a loop, whatever lies there, on real processes."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from projects import pidfile
from projects.pidfile import Found, State
from services import processes
from tests.running import wait_for

NODE = "node-a"
FOLDER = Path("scripts/ralph")
ABSENT = 4_194_303


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "workspace/demo"
    (made / FOLDER).mkdir(parents=True)
    return made


@pytest.fixture
def file(root: Path) -> Path:
    return root / FOLDER / ".ralph.pid"


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen]]:
    started = []

    def one(cwd: Path) -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "300"], cwd=cwd))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.wait()


def look(root: Path) -> Found:
    return pidfile.look(root, FOLDER, NODE)


class TestLook:
    def test_a_loop_that_runs(self, root, file, start):
        process = start(root)
        file.write_text(f"{process.pid}\n")
        found = look(root)
        assert (found.state, found.content, found.pid) == (State.THERE, f"{process.pid}\n".encode(), process.pid)
        assert found.identity == processes.identify(process.pid, NODE)
        assert abs(found.started_at - datetime.now(UTC)) < timedelta(minutes=5)
        assert found.is_running

    def test_one_below_the_project(self, root, file, start):
        file.write_text(str(start(root / FOLDER).pid))
        assert look(root).state == State.THERE

    def test_through_a_workspace_that_is_a_link(self, root, file, start, tmp_path):
        file.write_text(str(start(root).pid))
        (tmp_path / "link").symlink_to(root.parent)
        assert look(tmp_path / "link/demo").state == State.THERE

    @pytest.mark.parametrize("beside", ["demolition", ".", "demo-2/demo"])
    def test_one_that_works_elsewhere(self, root, file, start, beside):
        elsewhere = root.parent / beside
        elsewhere.mkdir(parents=True, exist_ok=True)
        process = start(elsewhere)
        file.write_text(str(process.pid))
        found = look(root)
        assert (found.state, found.pid, found.is_running) == (State.OUTSIDE, process.pid, False)

    def test_a_link_in_the_project_leads_out_of_it(self, root, file, start, tmp_path):
        (tmp_path / "away").mkdir()
        (root / "away").symlink_to(tmp_path / "away")
        file.write_text(str(start(root / "away").pid))
        assert look(root).state == State.OUTSIDE

    def test_no_file(self, root):
        assert look(root) == Found(State.ABSENT)

    def test_no_folder(self, root):
        assert pidfile.look(root, Path("plans"), NODE) == Found(State.ABSENT)

    @pytest.mark.parametrize(
        "content", ["", "0", "1", "-5", "+7", "abc", "12 34", "0x10", "٧٧", "4194305", "99999999999", "9" * 60]
    )
    def test_a_pid_that_is_none(self, root, file, content):
        file.write_text(content)
        assert look(root) == Found(State.INVALID, content.encode())

    def test_more_than_a_pid(self, root, file, start):
        file.write_text(f"{start(root).pid}{' ' * 64}")
        assert look(root) == Found(State.INVALID)
        file.write_bytes(b"1" * 1_000_000)
        assert look(root) == Found(State.INVALID)

    @pytest.mark.parametrize("kind", ["link", "dangling", "directory", "fifo", "device"])
    def test_what_is_no_file(self, root, file, start, kind):
        match kind:
            case "link":
                (root / "pid").write_text(str(start(root).pid))
                file.symlink_to(root / "pid")
            case "dangling":
                file.symlink_to(root / "nowhere")
            case "directory":
                file.mkdir()
            case "fifo":
                os.mkfifo(file)
            case "device":
                file.symlink_to("/dev/zero")
        assert look(root) == Found(State.INVALID)

    def test_a_folder_that_leads_out_of_the_project(self, root, file, start, tmp_path):
        (tmp_path / "away").mkdir()
        (tmp_path / "away/.ralph.pid").write_text(str(start(root).pid))
        (root / "plans").symlink_to(tmp_path / "away")
        assert pidfile.look(root, Path("plans"), NODE) == Found(State.INVALID)

    def test_a_process_that_is_gone(self, root, file):
        file.write_text(str(ABSENT))
        assert look(root) == Found(State.GONE, str(ABSENT).encode(), ABSENT)

    def test_a_zombie_is_gone(self, root, file, start):
        process = start(root)
        file.write_text(str(process.pid))
        process.kill()
        wait_for(lambda: look(root).state == State.GONE, 10)
        assert process.returncode is None

    def test_a_number_that_was_used_again_elsewhere(self, root, file, start):
        process = start(root.parent)
        file.write_text(str(process.pid))
        before = time.time() - 60
        os.utime(file, (before, before))
        found = look(root)
        assert (found.state, found.pid, found.is_running) == (State.GONE, process.pid, False)

    @pytest.mark.parametrize("seconds", [60, 3600, 10**9])
    def test_one_in_the_project_that_started_later_unless_the_clock_was_set(self, root, file, start, seconds):
        process = start(root)
        file.write_text(str(process.pid))
        before = time.time() - seconds
        os.utime(file, (before, before))
        found = look(root)
        assert (found.state, found.pid, found.is_running) == (State.UNKNOWN, process.pid, False)
        # Whoever was seen there before is no other.
        assert pidfile.look(root, FOLDER, NODE, known=found.identity).state == State.THERE
        other = replace(found.identity, start_ticks=found.identity.start_ticks - 1)
        assert pidfile.look(root, FOLDER, NODE, known=other).state == State.UNKNOWN

    def test_another_users_that_started_later(self, root, file, start, monkeypatch):
        def forbidden(pid):
            raise PermissionError(13, "not yours")

        file.write_text(str(start(root).pid))
        os.utime(file, (0, 0))
        monkeypatch.setattr(processes, "working_directory", forbidden)
        assert look(root).state == State.UNKNOWN

    def test_one_that_started_later_and_has_ended(self, root, file, start, monkeypatch):
        file.write_text(str(start(root).pid))
        os.utime(file, (0, 0))
        monkeypatch.setattr(processes, "working_directory", lambda pid: None)
        assert look(root).state == State.GONE

    def test_another_users(self, root, file, start, monkeypatch):
        def forbidden(pid):
            raise PermissionError(13, "not yours")

        process = start(root)
        file.write_text(str(process.pid))
        monkeypatch.setattr(processes, "working_directory", forbidden)
        found = look(root)
        assert (found.state, found.is_running) == (State.HIDDEN, True)
        assert found.identity == processes.identify(process.pid, NODE)

    def test_one_that_let_go_of_its_directory(self, root, file, start, monkeypatch):
        def ending(pid):
            raise FileNotFoundError(2, "no such file")

        file.write_text(str(start(root).pid))
        monkeypatch.setattr(processes, "working_directory", ending)
        assert look(root).state == State.UNKNOWN

    def test_one_that_ends_while_we_look(self, root, file, start, monkeypatch):
        file.write_text(str(start(root).pid))
        monkeypatch.setattr(processes, "working_directory", lambda pid: None)
        assert look(root).state == State.GONE

    def test_one_that_cannot_be_seen(self, root, file, start, monkeypatch):
        def hidden(pid, host):
            raise PermissionError(13, "hidden in /proc")

        process = start(root)
        file.write_text(str(process.pid))
        monkeypatch.setattr(processes, "identify", hidden)
        assert look(root) == Found(State.UNKNOWN, str(process.pid).encode(), process.pid)


class TestRemove:
    def test_what_it_was(self, root, file):
        file.write_text("77\n")
        assert pidfile.remove_if(root, FOLDER, b"77\n")
        assert not file.exists()

    @pytest.mark.parametrize("content", ["78\n", "77", "77\n\n", "", "77\n" + " " * 100])
    def test_what_another_loop_wrote_stays(self, root, file, content):
        file.write_text(content)
        assert not pidfile.remove_if(root, FOLDER, b"77\n")
        assert file.read_text() == content

    def test_one_that_is_gone_already(self, root):
        assert not pidfile.remove_if(root, FOLDER, b"77\n")

    def test_a_link_stays_and_what_it_leads_to(self, root, file, tmp_path):
        (tmp_path / "pid").write_text("77\n")
        file.symlink_to(tmp_path / "pid")
        assert not pidfile.remove_if(root, FOLDER, b"77\n")
        assert (file.is_symlink(), (tmp_path / "pid").read_text()) == (True, "77\n")

    def test_a_folder_that_leads_out_of_the_project(self, root, tmp_path):
        (tmp_path / "away").mkdir()
        (tmp_path / "away/.ralph.pid").write_text("77\n")
        (root / "plans").symlink_to(tmp_path / "away")
        assert not pidfile.remove_if(root, Path("plans"), b"77\n")
        assert (tmp_path / "away/.ralph.pid").exists()

    @pytest.mark.parametrize("is_same_file", [False, True])
    def test_a_folder_that_is_swapped_for_a_link_meanwhile(self, root, file, tmp_path, monkeypatch, is_same_file):
        (tmp_path / "away").mkdir()
        file.write_text("77\n")
        if is_same_file:
            (tmp_path / "away/.ralph.pid").hardlink_to(file)
        else:
            (tmp_path / "away/.ralph.pid").write_text("77\n")
        opened = pidfile.ralph.open_inside

        def swap(*given):
            descriptor = opened(*given)
            (root / FOLDER).rename(root / "before")
            (root / FOLDER).symlink_to(tmp_path / "away")
            return descriptor

        monkeypatch.setattr(pidfile.ralph, "open_inside", swap)
        assert not pidfile.remove_if(root, FOLDER, b"77\n")
        assert (tmp_path / "away/.ralph.pid").exists()

    def test_a_file_that_is_replaced_meanwhile(self, root, file, monkeypatch):
        file.write_text("77\n")
        opened = pidfile.ralph.open_inside

        def replace(*given):
            descriptor = opened(*given)
            (root / "new").write_text("78\n")
            (root / "new").rename(file)
            return descriptor

        monkeypatch.setattr(pidfile.ralph, "open_inside", replace)
        assert not pidfile.remove_if(root, FOLDER, b"77\n")
        assert file.read_text() == "78\n"
