"""Write the files that a Ralph loop leaves behind."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any


def stories(*states: str) -> list[dict[str, Any]]:
    """Return one story a state: passed failed blocked in_progress pending."""
    made = []
    for number, state in enumerate(states, 1):
        story: dict[str, Any] = {
            "id": f"US-{number:03}",
            "title": f"Story {number}",
            "priority": number,
            "passes": state == "passed",
            "acceptanceCriteria": [f"criterion {number}"],
        }
        if state in {"failed", "blocked"}:
            story[state] = True
            story["failureReason"] = f"reason {number}"
        if state == "in_progress":
            story["status"] = "in_progress"
        made.append(story)
    return made


def write_prd(root: Path, *states: str, place: str = "scripts/ralph/prd.json", **document: Any) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"project": root.name, "branchName": f"ralph/{root.name}", "userStories": stories(*states), **document}
    path.write_text(json.dumps(body, indent=2), encoding="utf-8")
    return path


def write_project(
    root: Path,
    states: tuple[str, ...] = ("passed", "pending", "pending"),
    *,
    place: str = "scripts/ralph/prd.json",
    progress: str | None = "# Progress\n",
    **document: Any,
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    prd = write_prd(root, *states, place=place, **document)
    if progress is not None:
        (prd.parent / "progress.txt").write_text(progress, encoding="utf-8")
    return root


def write_log(root: Path, number: int, text: str = "working\n", *, at: datetime | None = None) -> Path:
    path = root / "scripts/ralph/logs" / f"iteration-{number}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if at is not None:
        os.utime(path, (at.timestamp(), at.timestamp()))
    return path
