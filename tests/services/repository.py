"""A project's repository as agents leave it, made by real git."""

import hashlib
import json
import subprocess
from pathlib import Path


def git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@b", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def commit(root: Path, message: str, **files: str) -> str:
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", message)
    return git(root, "rev-parse", "HEAD")


def flip(root: Path, key: str) -> None:
    """Do what an agent does after its commit: the story passes, and it says so."""
    path = root / "scripts/ralph/prd.json"
    document = json.loads(path.read_text())
    for story in document["userStories"]:
        if story["id"] == key:
            story["passes"] = True
    path.write_text(json.dumps(document, indent=2))
    (root / "scripts/ralph/progress.txt").write_text(f"# Progress\n\n## 2026-11-20 - {key}\n- done\n")


def everything(root: Path) -> str:
    """Return a hash over HEAD, the index and all files."""
    seen = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "objects" not in path.parts:
            seen.update(str(path).encode() + path.read_bytes())
    return seen.hexdigest()
