"""Pipes, devices, endless texts and holes where git and we expect files: a refusal soon, and nothing held or filled."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from projects import git as guarded
from projects import rollback
from projects.rollback import Refused, Wanted, reading, worktree
from tests.projects.repositories import PRD, commit, git, settled, state, worked

pytestmark = pytest.mark.pure

AT = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
PROJECT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from projects.rollback.repository import open_repository
root, scratch = map(Path, sys.argv[1:])
with open_repository(root).aside(scratch):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def root(tmp_path):
    return worked(tmp_path / "demo")


def ended(call, within_s=20):
    """Return what a call returns or raises; fail when it waits for ever."""
    found = []

    def outcome():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=outcome, daemon=True)
    thread.start()
    thread.join(within_s)
    assert found, "it hangs"
    return found[0]


def preview(root):
    return ended(lambda: rollback.preview(root, PRD, Wanted()))


def blockers(root):
    return [each.code for each in preview(root).blockers]


def least(named):
    """Return a limit that is the caller's own, or a small one."""
    return 100_000 if named.get("limit") == guarded.STDOUT_BYTES else named.get("limit", 100_000)


def limit_git(monkeypatch, seconds):
    real = guarded.run
    monkeypatch.setattr(guarded, "run", lambda *args, **named: real(*args, **{**named, "timeout_s": seconds}))


class TestPipes:
    NAMES = ("index", "HEAD", "config", "packed-refs", "shallow", "info/attributes", "objects/info/alternates")

    @pytest.mark.parametrize("name", NAMES)
    def test_in_the_place_of_git_s_own_files(self, root, name):
        path = root / ".git" / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        (refusal,) = preview(root).blockers
        assert (refusal.code, refusal.status) == ("unsafe-file", 409)
        assert Path(name).name in refusal.detail

    def test_head_of_a_work_tree(self, root):
        (root / ".git/worktrees/x").mkdir(parents=True)
        os.mkfifo(root / ".git/worktrees/x/HEAD")
        assert blockers(root) == ["unsafe-file"]

    def test_gitdir_behind_a_file(self, root):
        (root / ".git").rename(root / "real.git")
        (root / ".git").write_text("gitdir: real.git\n")
        os.mkfifo(root / "real.git/gitdir")
        assert blockers(root) == ["unsafe-file"]

    def test_in_the_place_of_a_tracked_file(self, root):
        (root / "src/app.py").unlink()
        os.mkfifo(root / "src/app.py")
        assert blockers(root) == ["dirty-tree"]

    def test_what_git_waits_for_is_waited_for_once(self, root, monkeypatch):
        (root / ".gitignore").unlink()
        os.mkfifo(root / ".gitattributes")
        limit_git(monkeypatch, 1)
        (refusal,) = preview(root).blockers
        assert refusal.code == "git-failed"
        assert "timed out" in refusal.detail

    @pytest.mark.parametrize("act", [rollback.carry_out, rollback.resume, rollback.undo])
    def test_in_the_place_of_our_lock(self, root, tmp_path, act):
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)
        os.mkfifo(root / f".git/andon-{plan.new[:16]}.lock")
        refusal = ended(lambda: act(root, plan, saved))
        assert isinstance(refusal, Refused)
        assert refusal.code == "unsafe-file"
        assert git(root, "rev-parse", "HEAD") == plan.head

    def test_in_the_place_of_a_ref_s_lock(self, root, tmp_path):
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)
        os.mkfifo(root / ".git/refs/heads/main.lock")
        assert ended(lambda: rollback.resume(root, plan, saved)) == "undone"

    def test_made_in_the_middle_it_is_undone(self, root, tmp_path, monkeypatch):
        before = settled(root)
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)

        def verify(*_args):
            (root / "src/app.py").unlink()
            os.mkfifo(root / "src/app.py")

        with monkeypatch.context() as patched:
            patched.setattr("projects.rollback.carrying._verify", verify)
            failed = ended(lambda: rollback.carry_out(root, plan, saved))
        assert isinstance(failed, OSError)
        assert rollback.resume(root, plan, saved) == "undone"
        assert settled(root) == before


class TestIndex:
    def test_a_link_to_an_endless_device_is_not_copied(self, root, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        plan = rollback.build(root, PRD, Wanted(), at=AT)
        (root / ".git/index").unlink()
        (root / ".git/index").symlink_to("/dev/zero")
        assert blockers(root) == ["unsafe-file"]
        refusal = ended(lambda: rollback.save(root, plan, tmp_path / "saved"))
        assert isinstance(refusal, Refused)
        assert refusal.code == "unsafe-file"
        assert not list(scratch.iterdir())

    def test_swapped_after_the_first_look(self, root, tmp_path, monkeypatch):
        monkeypatch.setattr("projects.rollback.repository._refuse_odd_files", lambda *_: None)
        (root / ".git/index").rename(root / ".git/other")
        (root / ".git/index").symlink_to("other")
        with pytest.raises(Refused) as caught:
            reading.copy(root / ".git/index", tmp_path / "copy", 1000)
        assert caught.value.code == "unsafe-file"
        assert not (tmp_path / "copy").exists()
        assert "unsafe-file" in blockers(root)

    def test_larger_than_any(self, root):
        os.truncate(root / ".git/index", reading.INDEX_BYTES + 1)
        (refusal,) = preview(root).blockers
        assert refusal.code == "unsafe-file"
        assert "larger" in refusal.detail


class TestReading:
    def test_a_file_that_grows_has_an_end(self, tmp_path):
        grows = tmp_path / "grows"
        grows.write_bytes(b"x" * 10)
        with reading.opened(grows, 100) as (descriptor, status):
            grows.write_bytes(b"x" * 50)
            assert b"".join(reading.chunks(descriptor, status.st_size)) == b"x" * 10

    def test_a_copy_replaces_a_link_and_keeps_the_time(self, tmp_path):
        (tmp_path / "from").write_bytes(b"new")
        os.utime(tmp_path / "from", ns=(5_000_000_007, 5_000_000_007))
        (tmp_path / "theirs").write_bytes(b"theirs")
        (tmp_path / "to").symlink_to("theirs")
        reading.copy(tmp_path / "from", tmp_path / "to", 3)
        assert (tmp_path / "theirs").read_bytes() == b"theirs"
        assert (tmp_path / "to").read_bytes() == b"new"
        assert (tmp_path / "to").stat().st_mtime_ns == 5_000_000_007

    def test_one_byte_too_many(self, tmp_path):
        (tmp_path / "from").write_bytes(b"four")
        with pytest.raises(Refused):
            reading.read(tmp_path / "from", 3)
        assert reading.read(tmp_path / "from", 4) == b"four"

    def test_a_hole_is_not_hashed(self, root):
        git(root, "update-index", "--assume-unchanged", "src/app.py")
        os.truncate(root / "src/app.py", worktree.HASHED_BYTES + 1)
        assert preview(root).blockers[0].code == "git-failed"


class TestPrintedWithoutEnd:
    def test_a_commit_with_a_message_of_megabytes(self, root):
        tree = git(root, "rev-parse", "HEAD^{tree}")
        parent = git(root, "rev-parse", "HEAD")
        told = (
            f"tree {tree}\nparent {parent}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nfeat: [US-002] x\n\n"
        )
        raw = told.encode() + b"words\n" * 400_000
        sha = git(root, "hash-object", "-t", "commit", "-w", "--stdin", input=raw)
        git(root, "update-ref", "HEAD", sha)
        (refusal,) = preview(root).blockers
        assert refusal.code == "git-failed"
        assert "printed more than 1048576 bytes" in refusal.detail

    def test_an_undo_brings_back_more_than_git_may_print(self, root, tmp_path, monkeypatch):
        for name in ("big.bin", "second.bin"):
            (root / "src" / name).write_bytes(os.urandom(300_000))
        git(root, "add", "src")
        commit(root, "feat: [US-002] big", add=False)
        before = settled(root)
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)
        rollback.carry_out(root, plan, saved)
        real = guarded.run
        # As if these blobs were larger than what git may print otherwise.
        monkeypatch.setattr(guarded, "run", lambda *args, **named: real(*args, **{**named, "limit": least(named)}))
        rollback.undo(root, plan, saved)
        assert settled(root) == before


class TestScratch:
    def test_it_is_where_the_caller_says_and_empty_after(self, root, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        scratch, saved = tmp_path / "run/scratch", tmp_path / "saved"
        before = state(root)
        assert rollback.preview(root, PRD, Wanted(), scratch=scratch).blockers == ()
        assert state(root) == before
        plan = rollback.build(root, PRD, Wanted(), at=AT, scratch=scratch)
        rollback.save(root, plan, saved)
        rollback.carry_out(root, plan, saved, scratch=scratch)
        assert git(root, "rev-parse", "HEAD") == plan.new
        assert list(scratch.iterdir()) == []
        assert scratch.stat().st_mode & 0o777 == 0o700

    def test_what_is_left_is_swept(self, tmp_path):
        for name, age_s in (("andon-rollback-old", 7200), ("andon-rollback-new", 60), ("somebody-else", 7200)):
            folder = tmp_path / name / "objects"
            folder.mkdir(parents=True)
            (folder / "pack").write_text("x")
            then = time.time() - age_s
            os.utime(folder.parent, (then, then))
        (tmp_path / "andon-rollback-link").symlink_to(tmp_path / "somebody-else")
        os.utime(tmp_path / "andon-rollback-link", (0, 0), follow_symlinks=False)
        (tmp_path / "andon-rollback-file").touch()
        os.utime(tmp_path / "andon-rollback-file", (0, 0))
        assert rollback.sweep_scratch(tmp_path, 3600) == 1
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"andon-rollback-new", "somebody-else", "andon-rollback-link", "andon-rollback-file"}
        assert (tmp_path / "somebody-else/objects/pack").exists()
        assert rollback.sweep_scratch(tmp_path, 3600) == 0

    def test_no_folder_is_nothing_to_sweep(self, tmp_path):
        assert rollback.sweep_scratch(tmp_path / "gone", 0) == 0

    def test_the_folder_of_a_killed_process(self, root, tmp_path):
        words = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "scratch")]
        assert subprocess.run(words, cwd=PROJECT, check=False, timeout=60).returncode == -signal.SIGKILL
        assert len(list((tmp_path / "scratch").iterdir())) == 1
        assert rollback.sweep_scratch(tmp_path / "scratch", -1) == 1
        assert not list((tmp_path / "scratch").iterdir())
