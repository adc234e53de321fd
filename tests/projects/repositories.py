"""Real repositories as loops leave them, and everything about them that a rollback must not change."""

import hashlib
import os
import shlex
import stat
import subprocess
from pathlib import Path

from tests.projects.files import write_prd

PRD = Path("scripts/ralph/prd.json")
_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Agent",
    "GIT_AUTHOR_EMAIL": "agent@localhost",
    "GIT_COMMITTER_NAME": "Agent",
    "GIT_COMMITTER_EMAIL": "agent@localhost",
    "GIT_EDITOR": ":",
    "LC_ALL": "C.UTF-8",
}


def git(root: Path, *args: str, check: bool = True, input: bytes | None = None, **env: str) -> str:  # noqa: A002
    """Run git as an agent would, without this machine's configuration; return what it prints."""
    done = subprocess.run(
        ["git", *args], cwd=root, env={**_ENVIRONMENT, **env}, input=input, capture_output=True, check=False, timeout=60
    )
    if check and done.returncode:
        raise AssertionError(f"git {shlex.join(args)}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def commit(root: Path, message: str, *, when: str = "2026-01-02T03:04:05Z", add: bool = True) -> str:
    """Commit all there is, and return its id."""
    if add:
        git(root, "add", "-A")
    dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    git(root, "commit", "-q", "--allow-empty", "-m", message, **dates)
    return git(root, "rev-parse", "HEAD")


def init(root: Path, *options: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "--initial-branch=main", "--template=", *options)
    return root


def worked(root: Path, place: str = str(PRD)) -> Path:
    """Return a repository as an agent leaves it after its second story.

    It commits the code of a story first and flips the story afterwards, so the last commit carries the flip of
    US-001, and US-002's flip and notes are not committed.
    """
    init(root)
    prd = write_prd(root, "pending", "pending", "pending", place=place)
    progress = prd.parent / "progress.txt"
    progress.write_text("# Progress\n")
    (root / "src").mkdir()
    (root / "src/app.py").write_text("one\n")
    (root / "README.md").write_text("# Demo\n")
    (root / ".gitignore").write_text("*.cache\nbuild/\n")
    commit(root, "Start")
    (root / "src/app.py").write_text("one\ntwo\n")
    (root / "src/first.py").write_text("first\n")
    commit(root, "feat: [US-001] The first")
    write_prd(root, "passed", "pending", "pending", place=place)
    progress.write_text("# Progress\n## 2026-01-02 - US-001\n- done\n")
    (root / "src/app.py").write_text("one\ntwo\nthree\n")
    (root / "src/first.py").unlink()
    (root / "src/second.py").write_text("second\n")
    commit(root, "feat: [US-002] The second")
    write_prd(root, "passed", "passed", "pending", place=place)
    progress.write_text("# Progress\n## 2026-01-02 - US-001\n- done\n## 2026-01-02 - US-002\n- done\n")
    (prd.parent / "logs").mkdir()
    (prd.parent / "logs/iteration-2.log").write_text("working\n")
    return root


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content's hash of everything below a directory but its `.git`; ignored files too."""
    found: dict[str, tuple[int, str]] = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        if folder == os.fsencode(root) and b".git" in names:
            names.remove(b".git")
        for name in [*names, *files]:
            path = os.path.join(folder, name)
            if path == os.path.join(os.fsencode(root), b".git"):
                continue
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            else:
                content = b""
            found[shown] = (status.st_mode, hashlib.sha256(content).hexdigest())
    return found


def state(root: Path) -> dict[str, object]:
    """Return all that a refusal and a preview must leave alone: HEAD, refs, index with its time, tree, git's files."""
    git_dir = Path(git(root, "rev-parse", "--absolute-git-dir"))
    common = Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    index = git_dir / "index"
    return {
        "HEAD": (git_dir / "HEAD").read_bytes(),
        "refs": git(root, "for-each-ref"),
        "reflogs": sorted((str(p), p.read_bytes()) for p in (common / "logs").rglob("*") if p.is_file()),
        "index": index.read_bytes() if index.exists() else None,
        "index time": index.stat().st_mtime_ns if index.exists() else None,
        "tree": tree(root),
        "git's own": sorted(
            str(p.relative_to(common))
            for p in common.rglob("*")
            if p.relative_to(common).parts[0] != "objects" and not p.is_dir()
        ),
        "objects": sorted(str(p) for p in (common / "objects").rglob("*")),
    }


def settled(root: Path) -> dict[str, object]:
    """Return what an undo brings back: everything but objects, reflogs and the new files' own index times."""
    seen = {key: value for key, value in state(root).items() if key not in {"objects", "reflogs"}}
    # A ref may lie in a file of its own now.
    seen["git's own"] = [name for name in seen["git's own"] if not name.startswith("refs/")]  # type: ignore[attr-defined]
    return seen
