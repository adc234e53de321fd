"""Kill a rollback at every step and at any moment: what comes after is all of before, or all of after."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from projects import rollback
from projects.rollback import Plan, Refused, Wanted
from tests.projects.repositories import PRD, commit, git, settled, tree, worked

pytestmark = pytest.mark.pure

AT = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
PROJECT = Path(__file__).resolve().parents[2]
STEPS = ("locked", "checked", "copied", "begun", "tree", "index", "head", "released")
CHILD = """
import json, os, signal, sys
from pathlib import Path
from projects import rollback
root, saved, plan, last = sys.argv[1:]
def step(name):
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
rollback.carry_out(Path(root), rollback.Plan.from_json(json.loads(plan)), Path(saved), step=step)
"""


class Prepared:
    """A repository with a saved plan; `old` and `new` are its states before and after."""

    def __init__(self, folder: Path, files: int = 0) -> None:
        self.root = worked(folder / "demo")
        if files:
            for number in range(files):
                (self.root / f"src/many{number}.py").write_text(f"{number}\n" * 200)
            git(self.root, "add", "src")
            commit(self.root, "feat: [US-002] many", add=False)
            for number in range(files):
                (self.root / f"src/many{number}.py").write_text(f"{number} changed\n" * 200)
            git(self.root, "add", "src")
            commit(self.root, "feat: [US-002] many changed", add=False)
        self.saved = folder / "saved"
        self.old = settled(self.root)
        self.plan = rollback.build(self.root, PRD, Wanted(), at=AT)
        rollback.save(self.root, self.plan, self.saved)
        twin = folder / "twin"
        shutil.copytree(self.root, twin, symlinks=True)
        rollback.save(twin, self.plan, folder / "twin-saved")
        rollback.carry_out(twin, self.plan, folder / "twin-saved")
        self.new_tree = tree(twin)
        self.new_staged = git(twin, "ls-files", "-s")

    def start(self, last: str = "") -> "subprocess.Popen[bytes]":
        words = [str(self.root), str(self.saved), json.dumps(self.plan.to_json()), last]
        # What it leaves when it is killed goes with the test.
        env = {**os.environ, "TMPDIR": str(self.saved.parent)}
        return subprocess.Popen([sys.executable, "-c", CHILD, *words], cwd=PROJECT, env=env, stdout=subprocess.PIPE)

    def look(self, said: str) -> None:
        """See that all is as `resume` said, that saying it again changes nothing, and that git works."""
        for _ in range(2):
            assert said in {"carried-out", "undone"}
            if said == "undone":
                assert settled(self.root) == self.old
                assert git(self.root, "rev-parse", "HEAD") == self.plan.head
            else:
                assert git(self.root, "rev-parse", "HEAD") == self.plan.new
                assert tree(self.root) == self.new_tree
                assert git(self.root, "ls-files", "-s") == self.new_staged
            assert not list((self.root / ".git").glob("andon-*"))
            assert not list((self.root / ".git").rglob("*.lock"))
            assert rollback.resume(self.root, self.plan, self.saved) == said
        assert not git(self.root, "diff", "--name-only", "HEAD", "--", ".", ":!scripts")
        assert not (self.saved / "found").exists() or said == "undone"


@pytest.mark.parametrize("last", STEPS)
def test_killed_after_each_step(tmp_path, last):
    prepared = Prepared(tmp_path)
    child = prepared.start(last)
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()
    said = rollback.resume(prepared.root, prepared.plan, prepared.saved)
    assert said == ("carried-out" if last in {"head", "released"} else "undone")
    prepared.look(said)


def test_it_can_be_done_after_it_was_undone(tmp_path):
    prepared = Prepared(tmp_path)
    child = prepared.start("tree")
    child.wait(60)
    child.stdout.close()
    assert rollback.resume(prepared.root, prepared.plan, prepared.saved) == "undone"
    plan = rollback.build(prepared.root, PRD, Wanted(), at=AT)
    rollback.save(prepared.root, plan, tmp_path / "again")
    rollback.carry_out(prepared.root, plan, tmp_path / "again")
    assert tree(prepared.root) == prepared.new_tree


@pytest.mark.parametrize("orphans", [True, False], ids=["git lives on", "git is killed too"])
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment(tmp_path, seed, orphans):
    prepared = Prepared(tmp_path, files=250)
    child = prepared.start()
    child.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.35))
    born = children(child.pid)
    child.kill()
    child.wait(60)
    child.stdout.close()
    if not orphans:
        for pid in born:
            kill_group(pid)
    prepared.look(rollback.resume(prepared.root, prepared.plan, prepared.saved))


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def inode_of(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_killed_inside_the_checkout(tmp_path):
    """git dies in the middle of writing the tree, our process right before."""
    prepared = Prepared(tmp_path, files=800)
    changed = prepared.root / "src/many1.py"
    child, born, inode = prepared.start(), [], changed.stat().st_ino
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None and inode_of(changed) == inode:
        born = children(child.pid)
    # On a slow machine it may be over already.
    child.kill()
    for pid in born:
        kill_group(pid)
    child.wait(60)
    child.stdout.close()
    prepared.look(rollback.resume(prepared.root, prepared.plan, prepared.saved))


def test_work_on_half_a_tree_is_kept(tmp_path):
    """A person edits a file between the crash and the resuming: the undo keeps a copy."""
    prepared = Prepared(tmp_path)
    child = prepared.start("tree")
    child.wait(60)
    child.stdout.close()
    (prepared.root / "src/app.py").write_text("written after the crash\n")
    (prepared.root / "src/first.py").write_text("this too\n")
    assert (prepared.root / ".git/index.lock").exists()
    assert rollback.resume(prepared.root, prepared.plan, prepared.saved) == "undone"
    assert settled(prepared.root) == prepared.old
    kept = sorted(path.read_text() for path in (prepared.saved / "found").iterdir())
    assert kept == ["this too\n", "written after the crash\n"]


def test_somebody_worked_on(tmp_path):
    prepared = Prepared(tmp_path)
    child = prepared.start("tree")
    child.wait(60)
    child.stdout.close()
    (prepared.root / ".git/index.lock").unlink()
    git(prepared.root, "commit", "-q", "--allow-empty", "-m", "meanwhile")
    before = settled(prepared.root)
    assert rollback.resume(prepared.root, prepared.plan, prepared.saved) == "moved"
    after = settled(prepared.root)
    assert {key for key in before if before[key] != after[key]} <= {"git's own"}
    assert not list((prepared.root / ".git").glob("andon-*"))
    with pytest.raises(Refused) as caught:
        rollback.undo(prepared.root, prepared.plan, prepared.saved)
    assert caught.value.code == "head-moved"


@pytest.mark.parametrize("last", ["head", "released"])
def test_somebody_worked_on_from_the_new_commit(tmp_path, last):
    prepared = Prepared(tmp_path)
    child = prepared.start(last)
    child.wait(60)
    child.stdout.close()
    (prepared.root / ".git/index.lock").unlink(missing_ok=True)
    (prepared.root / "src/later.py").write_text("later\n")
    git(prepared.root, "add", "src")
    at = commit(prepared.root, "goes on", add=False)
    before = tree(prepared.root)
    for _ in range(2):
        assert rollback.resume(prepared.root, prepared.plan, prepared.saved) == "carried-out"
    assert git(prepared.root, "rev-parse", "HEAD") == at
    assert tree(prepared.root) == before
    assert git(prepared.root, "rev-parse", prepared.plan.backup_ref) == prepared.plan.head
    assert not list((prepared.root / ".git").glob("andon-*"))


def test_a_new_commit_that_is_gone_was_not_carried_out(tmp_path):
    prepared = Prepared(tmp_path)
    git(prepared.root, "commit", "-q", "--allow-empty", "-m", "meanwhile")
    git(prepared.root, "prune", "--expire=now")
    assert rollback.resume(prepared.root, prepared.plan, prepared.saved) == "moved"


def test_killed_moving_head(tmp_path):
    """What an update-ref that is killed leaves is ours: its lock names the new commit."""
    prepared = Prepared(tmp_path)
    child = prepared.start("index")
    child.wait(60)
    child.stdout.close()
    (prepared.root / ".git/HEAD.lock").touch()
    (prepared.root / ".git/refs/heads/main.lock").write_text(prepared.plan.new + "\n")
    prepared.look(rollback.resume(prepared.root, prepared.plan, prepared.saved))


def test_an_undo_that_is_killed_is_gone_on_with(tmp_path, monkeypatch):
    prepared = Prepared(tmp_path)
    child = prepared.start("index")
    child.wait(60)
    child.stdout.close()
    with monkeypatch.context() as patched:
        patched.setattr(
            "projects.rollback.restoring.put", lambda *_args, **_named: (_ for _ in ()).throw(OSError("full"))
        )
        with pytest.raises(OSError, match="full"):
            rollback.resume(prepared.root, prepared.plan, prepared.saved)
    assert (prepared.root / ".git/index.lock").exists()
    prepared.look(rollback.resume(prepared.root, prepared.plan, prepared.saved))


def test_undone_from_a_plan_that_was_stored(tmp_path):
    prepared = Prepared(tmp_path)
    rollback.carry_out(prepared.root, prepared.plan, prepared.saved)
    rollback.undo(prepared.root, Plan.from_json(json.loads(json.dumps(prepared.plan.to_json()))), prepared.saved)
    assert settled(prepared.root) == prepared.old
