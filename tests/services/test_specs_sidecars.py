"""Spec files on disk: whatever an agent puts in their place is read safely, or not at all."""

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.specs import Sidecar, Unreadable, delete_sidecar, is_agent_id, list_sidecars, read_sidecar
from services.specs import sidecars as module

AGENT = "t_1a2b3c4d-1"
FILE = "managed-spawn.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "agents" / AGENT).mkdir(parents=True)
    return home


@pytest.fixture
def place(root: Path) -> Path:
    return root / "agents" / AGENT / FILE


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a file that nobody may reach through a link, in a folder of the shape of an agent's."""
    folder = tmp_path / "outside" / AGENT
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"secret")
    return folder / FILE


def refusal(call: Callable[..., Any], *args: Any) -> str:
    """Return why a call is refused; it fails when it still runs after a minute, as on a FIFO."""
    found: list[str] = []

    def run() -> None:
        try:
            found.append(f"returned {call(*args)!r}")
        except Unreadable as error:
            found.append(error.reason)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it blocks"
    return found[0]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left(root: Path) -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before


def test_a_file_is_read_as_it_is(root: Path, place: Path) -> None:
    for content in (b"", b'{"specs": []}', b"\xff\0", b"x" * 65536):
        place.write_bytes(content)
        assert read_sidecar(root, AGENT) == content
    place.write_bytes(b"four")
    assert read_sidecar(root, AGENT, limit=4) == b"four"
    place.chmod(0o400)
    assert read_sidecar(root, AGENT) == b"four"


def test_none_is_said_only_of_what_does_not_exist(tmp_path: Path, root: Path) -> None:
    assert read_sidecar(root, AGENT) is None
    assert read_sidecar(root, "t_other-1") is None
    assert read_sidecar(tmp_path / "none", AGENT) is None
    (tmp_path / "new").mkdir()
    assert read_sidecar(tmp_path / "new", AGENT) is None
    assert not delete_sidecar(root, AGENT)
    assert not delete_sidecar(tmp_path / "new", AGENT)


def test_a_root_may_be_reached_by_a_link(tmp_path: Path, root: Path, place: Path) -> None:
    place.write_bytes(b"x")
    (tmp_path / "link").symlink_to(root)
    assert read_sidecar(tmp_path / "link", AGENT) == b"x"


BAD_IDS = ["", ".", "..", "../x", f"{AGENT}/", f"x/{AGENT}", "/etc", "-a", "_a", "a.b", "a b", f"{AGENT}\n", "a\0", "é"]
BAD_IDS += ["a" * 129, "\ud800"]


@pytest.mark.parametrize("agent", BAD_IDS)
def test_a_bad_agent_id_is_refused_before_anything_is_opened(root: Path, place: Path, agent: str) -> None:
    place.write_bytes(b"x")
    assert not is_agent_id(agent)
    assert refusal(read_sidecar, root, agent) == "unreadable: not an agent id"
    assert refusal(delete_sidecar, root, agent) == "unreadable: not an agent id"
    assert place.exists()


def test_ids_of_agents() -> None:
    assert all(map(is_agent_id, ["a", "0", "A_-", "a" * 128, AGENT]))


def test_a_link_in_the_files_place_is_refused_and_deleted_alone(root: Path, place: Path, outside: Path) -> None:
    place.symlink_to(outside)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: a symlink"
    assert list_sidecars(root)[0].problem == "unreadable: a symlink"
    assert delete_sidecar(root, AGENT)
    assert not place.is_symlink()
    assert outside.read_bytes() == b"secret"
    place.symlink_to("nowhere")
    assert refusal(read_sidecar, root, AGENT) == "unreadable: a symlink"
    assert delete_sidecar(root, AGENT)
    assert read_sidecar(root, AGENT) is None


def test_a_link_in_the_agents_place_is_refused(root: Path, place: Path, outside: Path) -> None:
    place.parent.rmdir()
    place.parent.symlink_to(outside.parent)
    expected = "unreadable: a symlink or not a directory"
    assert refusal(read_sidecar, root, AGENT) == expected
    assert refusal(delete_sidecar, root, AGENT) == expected
    assert list_sidecars(root) == [Sidecar(AGENT, 0, 0.0, expected)]
    assert outside.exists()


def test_a_link_in_the_place_of_all_agents_is_refused(root: Path, place: Path, outside: Path) -> None:
    place.parent.rmdir()
    (root / "agents").rmdir()
    (root / "agents").symlink_to(outside.parent.parent)
    expected = "unreadable: a symlink or not a directory"
    assert refusal(read_sidecar, root, AGENT) == expected
    assert refusal(delete_sidecar, root, AGENT) == expected
    assert refusal(list_sidecars, root) == expected
    assert outside.exists()


def test_a_file_in_the_place_of_a_folder_is_refused(root: Path, place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_bytes(b"x")
    assert refusal(read_sidecar, root, AGENT) == "unreadable: a symlink or not a directory"


def test_a_fifo_blocks_nobody(root: Path, place: Path) -> None:
    os.mkfifo(place)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: not a regular file"
    assert refusal(list_sidecars, root).startswith("returned [Sidecar")
    assert delete_sidecar(root, AGENT)
    assert not place.exists()


def test_a_socket_is_refused(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Paths of sockets are short.
    monkeypatch.chdir(place.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(FILE)
        assert refusal(read_sidecar, root, AGENT) == "unreadable: not a regular file"


def test_a_folder_is_refused_and_deleted_when_empty(root: Path, place: Path) -> None:
    place.mkdir()
    assert refusal(read_sidecar, root, AGENT) == "unreadable: not a regular file"
    (place / "x").mkdir()
    assert refusal(delete_sidecar, root, AGENT) == "unreadable: directory not empty"
    (place / "x").rmdir()
    assert delete_sidecar(root, AGENT)
    assert not place.exists()


def test_a_large_file_is_refused_by_its_size(root: Path, place: Path) -> None:
    place.write_bytes(b"x" * 65537)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: larger than 65536 bytes"
    os.truncate(place, 1 << 40)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: larger than 65536 bytes"
    assert list_sidecars(root)[0].problem == "unreadable: larger than 65536 bytes"
    place.write_bytes(b"")
    assert read_sidecar(root, AGENT) == b""


def test_a_file_that_grows_while_it_is_read_is_cut_off(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_bytes(b"x")
    real = os.fstat

    def grown(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        place.write_bytes(b"x" * 100_000)
        return status

    monkeypatch.setattr(os, "fstat", grown)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: larger than 65536 bytes"


def test_what_the_system_refuses_is_unreadable(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything: the refusal is put in its way."""
    place.write_bytes(b"x")
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if path == FILE:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert refusal(read_sidecar, root, AGENT) == "unreadable: permission denied"

    def fail(_descriptor: int, _size: int) -> bytes:
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", fail)
        assert refusal(read_sidecar, root, AGENT) == "unreadable: input/output error"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file_or_folder_is_unreadable(root: Path, place: Path) -> None:
    place.write_bytes(b"x")
    place.chmod(0)
    assert refusal(read_sidecar, root, AGENT) == "unreadable: permission denied"
    place.parent.chmod(0)
    try:
        assert refusal(read_sidecar, root, AGENT) == "unreadable: permission denied"
        assert list_sidecars(root)[0].problem == "unreadable: permission denied"
    finally:
        place.parent.chmod(0o700)


def test_a_list_says_who_left_what(root: Path, place: Path) -> None:
    place.write_bytes(b"four")
    os.utime(place, (1_000_000_000, 1_700_000_000.5))
    (root / "agents" / "b-empty").mkdir()
    (root / "agents" / ".hidden").write_text("")
    (root / "agents" / "a file").write_text("")
    for name in ("a b\n", "Z"):
        (root / "agents" / name).mkdir()
        (root / "agents" / name / FILE).write_bytes(b"")
    undecodable = os.fsencode(root / "agents") + b"/\xff"
    os.mkdir(undecodable)
    Path(os.fsdecode(undecodable), FILE).write_bytes(b"")
    found = list_sidecars(root)
    assert [(sidecar.agent, sidecar.size, sidecar.problem) for sidecar in found] == [
        ("Z", 0, None),
        ("a b\\n", 0, "unreadable: not an agent id"),
        (AGENT, 4, None),
        ("\\udcff", 0, "unreadable: not an agent id"),
    ]
    assert found[2].mtime == 1_700_000_000.5


def test_a_list_of_nothing_is_empty(tmp_path: Path, root: Path) -> None:
    assert list_sidecars(root) == []
    assert list_sidecars(tmp_path / "none") == []


def test_a_list_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(210):
        folder = root / "agents" / f"a{number:03}"
        folder.mkdir()
        (folder / FILE).write_bytes(b"")
    found = list_sidecars(root)
    assert [sidecar.agent for sidecar in found] == [f"a{number:03}" for number in range(200)]
    monkeypatch.setattr(module, "MAX_SCANNED", 30)
    assert len(list_sidecars(root)) <= 30


def test_a_swap_between_folder_and_file_reads_no_stranger(
    root: Path, place: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder becomes a link after it was opened: what is read is what lay in the opened one."""
    place.write_bytes(b"mine")
    real = os.open
    swapped: list[str] = []

    def swap(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if path == FILE and not swapped:
            swapped.append(path)
            place.parent.rename(root / "moved")
            place.parent.symlink_to(outside.parent)
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", swap)
    assert read_sidecar(root, AGENT) == b"mine"
    assert swapped
    assert stat.S_ISLNK(place.parent.lstat().st_mode)
