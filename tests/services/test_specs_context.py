"""What validation sees of the real machine: paths, links, programs and names."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.specs import Accepted, Found, Invalid, Limits, System, context, trusted_dirs, validate_document

SYSTEM = System()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a root with a git work tree, a linked one, and much that is neither."""
    root = Path(os.path.realpath(tmp_path)) / "work"
    (root / "demo" / ".git").mkdir(parents=True)
    (root / "demo" / "a/b/c/d/e/f/g").mkdir(parents=True)
    for name, pointer in (("linked", "gitdir: ../demo/.git/worktrees/linked\n"), ("torn", "nothing"), ("empty", "")):
        (root / name).mkdir()
        (root / name / ".git").write_text(pointer)
    (root / "fifo").mkdir()
    os.mkfifo(root / "fifo" / ".git")
    (root / "bare").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "in").symlink_to("demo")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    return root


def problem(cwd: Path | str, root: Path) -> str | None:
    spec = {"name": "a", "cmd": "npm", "cwd": str(cwd), "healthcheck": {"type": "tcp", "port": 80, "timeout_s": 1}}
    found = validate_document({"specs": [spec]}, Limits(roots=(str(root),)), SYSTEM)
    return found.reason.removeprefix("invalid-workdir: spec[0]: ") if isinstance(found, Invalid) else None


@pytest.mark.parametrize("cwd", ["demo", "linked", "in", "in/a", "demo/a/b/c/d/e/f", "demo/../linked/", "demo//a"])
def test_a_folder_of_a_work_tree_is_found(tree: Path, cwd: str) -> None:
    assert problem(f"{tree}/{cwd}", tree) is None
    assert problem(f"/{tree}/{cwd}", tree) is None


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [
        ("none", "directory does not exist: {}"),
        ("demo/.git/x/y", "directory does not exist: {}"),
        ("linked/.git/x", "directory does not exist: {}"),
        ("x" * 300, "directory does not exist: {}"),
        ("loop", "directory does not exist: {}"),
        ("linked/.git", "path is not a directory: {}"),
        ("fifo/.git", "path is not a directory: {}"),
        ("out", "cwd-outside-allowed-root"),
        ("out/none", "cwd-outside-allowed-root"),
        ("..", "cwd-outside-allowed-root"),
        ("demo/../../work-2", "cwd-outside-allowed-root"),
        ("torn", '.git file present but not a worktree pointer (no "gitdir:" prefix): {}'),
        ("empty", '.git file present but not a worktree pointer (no "gitdir:" prefix): {}'),
        ("demo/a/b/c/d/e/f/g", "no .git directory or worktree pointer at {}"),
    ],
)
def test_any_other_folder_is_refused(tree: Path, cwd: str, expected: str) -> None:
    path = f"{tree}/{cwd}"
    assert problem(path, tree) == expected.format(path)


def test_the_search_for_a_work_tree_goes_on_past_what_git_would_not_read(tree: Path) -> None:
    # The test's own folder above the root is a work tree.
    assert problem(tree / "bare", tree) is None
    assert problem(tree / "fifo", tree) is None
    (tree.parent / ".git").rmdir()
    assert problem(tree / "fifo", tree) == f"no .git directory or worktree pointer at {tree}/fifo"


def test_paths_that_no_system_takes_are_missing() -> None:
    for path in ("/a\0b", "/\ud800"):
        assert SYSTEM.stat(path) == Found("missing", path)
        assert SYSTEM.which(path) is None
        assert System(("/usr/bin",)).which(path[1:]) is None


def test_the_head_is_short_and_empty_when_it_cannot_be_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 1000)
    assert SYSTEM.stat(str(big)) == Found("file", os.path.realpath(big), b"x" * 64)
    # Address 0 is mapped nowhere.
    assert SYSTEM.stat(f"/proc/{os.getpid()}/mem") == Found("file", f"/proc/{os.getpid()}/mem", b"")


def test_a_file_that_becomes_a_fifo_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(context._head(str(tmp_path / "fifo"))), daemon=True)
    reading.start()
    reading.join(30)
    assert found == [b""]


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """Return a folder with a program, a text, a link out and a folder."""
    folder = Path(os.path.realpath(tmp_path)) / "bin"
    (folder / "folder").mkdir(parents=True)
    for place in (folder / "node", folder.parent / "stranger"):
        place.write_text("#!/bin/sh\n")
        place.chmod(0o755)
    (folder / "text").write_text("")
    (folder / "npm").symlink_to("../stranger")
    (folder / "dangling").symlink_to("none")
    return folder


def test_programs_are_found_in_the_trusted_folders_alone(bins: Path) -> None:
    system = System((f"{bins}/none", str(bins)))
    assert system.which("node") == f"{bins}/node"
    assert system.which("npm") == f"{bins}/npm"
    for name in ("stranger", "text", "folder", "dangling", "none", "", ".", "..", "./node", "../stranger"):
        assert system.which(name) is None, name
    assert system.which(f"{bins}/node") == f"{bins}/node"
    assert system.which(f"{bins}/npm") == f"{bins.parent}/stranger"
    assert system.which(f"{bins}/text") is None
    assert system.which(f"{bins}/dangling") is None


def test_a_path_is_followed_to_where_its_program_lies(bins: Path, tree: Path) -> None:
    (tree / "demo" / "node").symlink_to(bins / "node")
    (bins / "perl").write_text("#!/bin/sh\n")
    (bins / "perl").chmod(0o755)
    (tree / "demo" / "python3").symlink_to(bins / "perl")
    (bins / "python3").symlink_to("perl")
    limits = Limits(trusted_dirs=(str(bins),), roots=(str(tree),), default_cwd=f"{tree}/demo")

    def is_allowed(cmd: str) -> bool:
        spec = {"name": "a", "cmd": cmd, "healthcheck": {"type": "tcp", "port": 80, "timeout_s": 1}}
        return isinstance(validate_document({"specs": [spec]}, limits, System(limits.trusted_dirs)), Accepted)

    allowed = [f"{bins}/node", f"{bins}/python3", f"{tree}/demo/node", f"{bins}/../bin/node"]
    refused = [f"{bins}/npm", f"{tree}/demo/python3", f"{bins}/text", f"{bins}/bash", "demo/node"]
    assert [cmd for cmd in [*allowed, *refused] if is_allowed(cmd)] == allowed


def test_no_folder_is_trusted_that_everybody_may_write_to(tmp_path: Path) -> None:
    root = Path(os.path.realpath(tmp_path))
    for name, mode in (("good", 0o755), ("open", 0o777), ("sticky", 0o1777), ("second", 0o700)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    (root / "file").write_text("")
    (root / "link").symlink_to("second")
    (root / "link-open").symlink_to("open")
    entries = ["good", "open", "sticky", "none", "file", "link", "second", "link-open", "good"]
    path = ":".join(["", ".", "bin", *(f"{root}/{entry}" for entry in entries), "/\0", "/\ud800"])
    assert trusted_dirs(path) == (f"{root}/good", f"{root}/second")
    assert trusted_dirs("") == ()


def test_names_are_resolved_by_the_system() -> None:
    assert set(SYSTEM.resolve("localhost")) & {"127.0.0.1", "::1"}
    assert SYSTEM.resolve("127.0.0.1") == ["127.0.0.1"]
    for name in ("a\0b", "x" * 300, "\ud800", "é" * 80):
        assert SYSTEM.resolve(name) == []


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let no name server answer until the event is set."""
    answer = threading.Event()

    def wait(*_args: object, **_options: object) -> list:
        answer.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield answer
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            thread.join(60)


def test_a_silent_name_server_is_not_waited_for(silence: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.specs.context.RESOLVE_SECONDS", 0.05)
    assert SYSTEM.resolve("slow.example") == []
    assert not silence.is_set()


def test_without_threads_no_name_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert SYSTEM.resolve("localhost") == []


def test_localhost_of_the_real_machine_is_loopback(tree: Path) -> None:
    def check(url: str) -> Accepted | Invalid:
        healthcheck = {"type": "http", "url": url, "expect_status": 200, "timeout_s": 1}
        spec = {"name": "a", "cmd": "npm", "healthcheck": healthcheck}
        return validate_document({"specs": [spec]}, Limits(roots=(str(tree),), default_cwd=f"{tree}/demo"), SYSTEM)

    found = check("http://localhost:3000/")
    assert isinstance(found, Accepted)
    json.dumps(found.specs)
    assert check("http://2130706433/") == Invalid("spec[0]: healthcheck-url-not-allowed (2130706433)")
