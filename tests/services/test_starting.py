"""What a process is started with: checked again, told to nobody else, appended to its log."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from services import logs, rules, starting
from services.models import ManagedProcess
from services.processes import MARKER, Identity, Member
from services.states import Purpose, Status
from tests.services.fake import Program
from tests.services.world import World

INHERITED = {
    "PATH": "/bin",
    "HOME": "/home/ada",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "LC_TIME": "de_DE",
    "TMPDIR": "/tmp",
    "TZ": "UTC",
    "AWS_SECRET_ACCESS_KEY": "s",
    "ANDON_SECRET_KEY": "s",
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "VIRTUAL_ENV": "/venv",
    "LCX": "no",
    "API_KEY": "k",
}
KEPT = {name: INHERITED[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "LC_TIME", "TMPDIR", "TZ")}


def declared(world: World, **fields: Any) -> ManagedProcess:
    return world.declare(world.spec("web", **fields), acts=False)[0]


def refused(world: World, row: ManagedProcess) -> str:
    with pytest.raises(starting.CannotStart) as refusal:
        starting.spawn(row, world.kernel, now=world.now)
    assert world.machine.processes == {}
    return str(refusal.value)


class TestEnvironment:
    def test_of_a_service(self, world: World) -> None:
        row = declared(world, env={"APP_PORT": "3000"})
        kept = {**KEPT, "PATH": rules.search_path()}
        assert starting.environment(row, INHERITED) == {**kept, "APP_PORT": "3000", MARKER: f"test-node.{row.pk}.1"}

    def test_its_programs_are_not_those_of_our_own_virtual_environment(self, monkeypatch) -> None:
        own = str(Path(sys.prefix, "bin"))
        monkeypatch.setenv("PATH", f"{own}:/usr/bin::/bin")
        assert sys.prefix != sys.base_prefix
        assert rules.search_path() == "/usr/bin:/bin"
        monkeypatch.setenv("PATH", own)
        assert rules.search_path() == os.defpath
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        assert rules.search_path() == own

    def test_of_a_worker(self, world: World, settings) -> None:
        settings.ANDON_LOOP_ENV = ["API_KEY"]
        row = world.launch(env={"ANDON_TASK": "t_1"})
        assert starting.environment(row, INHERITED) == {**KEPT, "ANDON_TASK": "t_1", MARKER: f"test-node.{row.pk}.1"}

    def test_of_a_loop(self, world: World, settings) -> None:
        settings.ANDON_LOOP_ENV = ["API_KEY", "UNSET"]
        row = world.launch(Purpose.LOOP)
        assert starting.environment(row, INHERITED) == {**KEPT, "API_KEY": "k", MARKER: f"test-node.{row.pk}.1"}

    def test_the_marker_is_ours_whatever_a_spec_says(self, world: World) -> None:
        row = declared(world)
        row.env = {MARKER: "test-node.99.1"}
        assert starting.environment(row, {})[MARKER] == f"test-node.{row.pk}.1"

    def test_what_the_worker_has_is_what_is_inherited(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "Europe/Berlin")
        row = declared(world)
        assert starting.environment(row)["TZ"] == "Europe/Berlin"
        assert not [name for name in starting.environment(row) if name.startswith(("DJANGO_", "PYTEST_"))]

    def test_the_child_gets_exactly_this(self, world: World) -> None:
        row = declared(world, env={"APP": "1"})
        world.tell([row])
        identity = world.row(row).identity
        assert identity is not None
        assert world.kernel.find(identity).env == starting.environment(row)


class TestCheckedAgain:
    def test_the_executable_is_resolved(self, world: World) -> None:
        assert starting.check(declared(world)) == [world.bash, "web"]

    def test_a_rule_that_changed_since(self, world: World) -> None:
        row = declared(world)
        row.cmd = "not-allowed"
        assert refused(world, row) == "cmd-not-on-allowlist (not-allowed)"

    def test_a_directory_that_became_a_link_out_of_the_workspace(self, world: World, tmp_path: Path) -> None:
        folder = Path(world.project.path) / "app"
        folder.mkdir()
        row = declared(world, cwd=str(folder))
        folder.rmdir()
        (tmp_path / "elsewhere" / ".git").mkdir(parents=True)
        folder.symlink_to(tmp_path / "elsewhere")
        assert refused(world, row) == "invalid-workdir: cwd-outside-allowed-root"

    def test_a_directory_that_is_gone(self, world: World) -> None:
        row = declared(world)
        (Path(world.project.path) / ".git").rmdir()
        Path(world.project.path).rmdir()
        assert refused(world, row).startswith("invalid-workdir: directory does not exist: ")

    def test_a_program_that_is_gone(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        row = declared(world)
        monkeypatch.setenv("PATH", "/nowhere")
        assert refused(world, row) == "bash was not found in the directories of PATH that only their owner may write"

    def test_a_project_that_is_gone(self, world: World) -> None:
        row = declared(world)
        world.project.delete()
        assert refused(world, row) == "project demo is not known any more"

    @pytest.mark.parametrize("purpose", [Purpose.WORKER, Purpose.LOOP])
    def test_an_administrators_command_is_taken_as_it_is(self, world: World, purpose: Purpose) -> None:
        row = world.launch(purpose, argv=["/opt/any thing", "-x"])
        assert starting.check(row) == ["/opt/any thing", "-x"]
        row.cwd = "/nowhere"
        with pytest.raises(starting.CannotStart, match="directory does not exist: /nowhere"):
            starting.check(row)


class TestSpawn:
    @pytest.mark.parametrize(
        ("pid", "said"),
        [
            (77, "port-conflict (3000: somebody 77 on 127.0.0.1)"),
            (None, "port-conflict (3000: a process of another user on 127.0.0.1)"),
        ],
    )
    def test_a_port_in_use(self, world: World, pid: int | None, said: str) -> None:
        world.kernel.occupy(3001)
        world.kernel.occupy(3000, pid)
        assert refused(world, declared(world, ports=[3001, 3000])) == said

    def test_a_holder_without_a_name(self) -> None:
        from services.processes import Holder

        assert starting.describe(Holder(3000, "::1", 77, "")) == "process 77 on ::1"

    @pytest.mark.parametrize("what", ["link", "fifo", "folder", "second name"])
    def test_a_log_that_cannot_be_opened(self, world: World, tmp_path: Path, what: str) -> None:
        row = declared(world)
        world.logs.mkdir()
        path = world.logs / row.log_name
        match what:
            case "link":
                path.symlink_to(tmp_path / "target")
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "second name":
                path.write_text("")
                (tmp_path / "second").hardlink_to(path)
        assert refused(world, row).startswith("its log cannot be opened: ")
        assert not (tmp_path / "target").exists()

    def test_each_start_has_a_line_of_its_own(self, world: World) -> None:
        row = declared(world)
        for generation in (1, 2):
            row.generation = generation
            starting.spawn(row, world.kernel, now=world.now)
        assert (world.logs / row.log_name).read_text().splitlines() == [
            f"--- andon: generation {number} starts 2026-11-20T12:00:00Z ---" for number in (1, 2)
        ]

    def test_why_it_did_not_start_stands_in_its_log(self, world: World) -> None:
        world.script("web", Program(error=ValueError("embedded null byte")))
        row = declared(world)
        assert refused(world, row) == "bash could not be started: embedded null byte"
        assert "could not be started: embedded null byte" in (world.logs / row.log_name).read_text()

    def test_a_full_disk_keeps_nothing_from_being_started(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(fd: int, text: str) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(logs, "boundary", full)
        row = declared(world)
        assert world.kernel.find(starting.spawn(row, world.kernel, now=world.now)).code is None

    @pytest.mark.parametrize("error", [None, OSError(2, "No such file or directory")])
    def test_its_descriptor_is_closed(self, world: World, error: OSError | None) -> None:
        world.script("web", Program(error=error))
        row = declared(world)
        before = set(os.listdir("/proc/self/fd"))
        try:
            starting.spawn(row, world.kernel, now=world.now)
        except starting.CannotStart:
            assert error is not None
        assert set(os.listdir("/proc/self/fd")) == before


class TestPrepare:
    """What an app above makes on the host, just before its process starts."""

    def test_its_command_directory_and_environment_replace_the_rows(self, world: World, tmp_path: Path) -> None:
        made = starting.Prepared(
            ["tool", "-x"], str(tmp_path), {"TOKEN": "s3cret", MARKER: "another's", "PATH": "/own"}
        )
        asked: list[int] = []

        def prepare(row: ManagedProcess) -> starting.Prepared:
            asked.append(row.pk)
            return made

        starting.prepare[Purpose.WORKER] = prepare
        row = world.launch(env={"KEPT": "1"}, cwd="/")
        assert row.identity is not None
        process = world.kernel.find(row.identity)
        assert asked == [row.pk]
        assert list(process.argv) == ["tool", "-x"]
        assert (process.env["TOKEN"], process.env["KEPT"], process.env["PATH"]) == ("s3cret", "1", "/own")
        assert process.env[MARKER] == f"{row.marker}1"
        assert "s3cret" not in repr(ManagedProcess.objects.values_list().get(pk=row.pk))

    def test_a_reason_why_not_is_the_reason_it_failed(self, world: World) -> None:
        def prepare(row: ManagedProcess) -> starting.Prepared:
            raise starting.CannotStart("workspace: no space")

        starting.prepare[Purpose.WORKER] = prepare
        row = world.launch()
        assert (row.status, row.last_error, row.started_at) == (Status.FAILED, "workspace: no space", None)
        assert world.machine.processes == {}

    def test_others_are_started_as_their_row_says(self, world: World) -> None:
        starting.prepare[Purpose.WORKER] = lambda row: pytest.fail("not asked")
        [row] = world.declare(world.spec("web"))
        assert row.identity is not None
        assert world.kernel.find(row.identity).argv == (world.bash, "web")


class TestTail:
    def write(self, world: World, row: ManagedProcess, content: bytes) -> None:
        world.logs.mkdir(exist_ok=True)
        (world.logs / row.log_name).write_bytes(content)

    def test_the_last_twenty_lines(self, world: World) -> None:
        row = declared(world)
        self.write(world, row, b"".join(b"line %d\n" % number for number in range(50)))
        assert starting.tail(row).splitlines() == [f"line {number}" for number in range(30, 50)]

    def test_what_andon_itself_wrote_into_it_is_left_out(self, world: World) -> None:
        row = declared(world)
        self.write(world, row, b"--- andon: generation 1 starts ---\nboom\n--- andon: rotated ---\n")
        assert starting.tail(row) == "boom"

    def test_at_most_two_kilobytes(self, world: World) -> None:
        row = declared(world)
        self.write(world, row, "ä".encode() * 10_000)
        assert 0 < len(starting.tail(row)) <= 2048

    def test_what_a_terminal_would_act_on_is_gone(self, world: World) -> None:
        row = declared(world)
        self.write(world, row, b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \xff\x00 end\n")
        assert "\x1b" not in starting.tail(row)
        assert "\x00" not in starting.tail(row)
        assert "red" in starting.tail(row)

    def test_what_was_rotated_away_is_not_there(self, world: World) -> None:
        row = declared(world)
        self.write(world, row, b"old\nnew\n")
        row.log_head = 4
        assert starting.tail(row) == "new"

    def test_without_a_log(self, world: World) -> None:
        row = declared(world)
        assert starting.tail(row) == ""
        assert starting.log_file(row) is None


def test_who_led_a_generation() -> None:
    def member(pid: int, ticks: int, session: int) -> Member:
        return Member(Identity("n", "b", pid, ticks), 1, session, session, 1, frozenset())

    assert starting.leader_among([]) is None
    assert starting.leader_among([member(9, 6, 9), member(10, 5, 10)]) == member(10, 5, 10).identity
    assert starting.leader_among([member(9, 5, 9), member(10, 5, 10)]) == member(9, 5, 9).identity
    assert starting.leader_among([member(9, 5, 8), member(10, 6, 10)]) is None


def test_a_status_is_no_part_of_it(world: World) -> None:
    """A spec as it was accepted is what is started, whatever life its row had."""
    row = world.make(Status.EXITED, "web", env={"A": "b"})
    assert starting.check(row) == [world.bash, "web"]
