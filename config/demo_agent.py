"""A scripted stand-in for a coding agent: takes the next open story, edits, tests, commits, tells its price.

A program of its own (standard library only): `demo_agent.py --pace SECONDS < prompt`, run in the project.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PLACES = ("scripts/ralph/prd.json", ".ralph/prd.json")
PROMISE = "<promise>COMPLETE</promise>"
GIT = (
    *("git", "-c", "user.name=Demo Agent", "-c", "user.email=demo-agent@localhost"),
    *("-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null"),
)
DICE = random.SystemRandom()
BLUE, GREEN, GREY, PLAIN = "\x1b[34m", "\x1b[32m", "\x1b[90m", "\x1b[0m"

# What each story of the demo projects adds: the file, and the code.
EDITS = {
    "Average several readings": (
        "greenhouse/sensors.py",
        '''
def average(readings: list[float]) -> float:
    """Return the mean of the readings; raises ValueError without any."""
    if not readings:
        raise ValueError("no readings")
    return sum(readings) / len(readings)
''',
    ),
    "Ignore readings of a broken sensor": (
        "greenhouse/sensors.py",
        '''
def plausible(readings: list[float], lowest: float = -40, highest: float = 60) -> list[float]:
    """Return the readings that a working thermometer can give."""
    return [reading for reading in readings if lowest <= reading <= highest]
''',
    ),
    "Open the windows when it is too warm": (
        "greenhouse/climate.py",
        '''
def window_opening(celsius: float, wanted: float = 24) -> int:
    """Return how far to open the windows, in percent: 20 for each degree too warm."""
    return max(0, min(100, round((celsius - wanted) * 20)))
''',
    ),
    "Warn of frost": (
        "greenhouse/climate.py",
        '''
def frost_warning(forecast: list[float]) -> str:
    """Return a warning for the coming hours, "" when there is nothing to fear."""
    cold = [hour for hour, celsius in enumerate(forecast, start=1) if celsius <= 0]
    return f"frost in {cold[0]} h" if cold else ""
''',
    ),
    "Water by soil moisture": (
        "greenhouse/watering.py",
        '''
def minutes_to_water(moisture: float, wanted: float = 0.35) -> int:
    """Return for how many minutes the valve opens; one minute brings 0.02 of moisture."""
    return max(0, round((wanted - moisture) / 0.02))
''',
    ),
    "A daily report": (
        "greenhouse/report.py",
        '''"""The day in one line."""


def daily_report(day: str, lowest: float, highest: float, minutes_watered: int) -> str:
    return f"{day}: {lowest:.1f} to {highest:.1f} °C, watered {minutes_watered} min"
''',
    ),
    "Count the species of a morning": (
        "birdsong/summary.py",
        '''
def species_heard(detections: list[tuple[str, float]], at_least: float = 0.7) -> dict[str, int]:
    """Return how often each species was heard with at least this confidence."""
    heard: dict[str, int] = {}
    for species, confidence in detections:
        if confidence >= at_least:
            heard[species] = heard.get(species, 0) + 1
    return heard
''',
    ),
    "Export a checklist as CSV": (
        "birdsong/export.py",
        '''"""Checklists for other programs."""

import csv
import io


def checklist(heard: dict[str, int]) -> str:
    """Return a CSV text, the commonest species first."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\\n")
    table.writerow(["species", "count"])
    table.writerows(sorted(heard.items(), key=lambda item: (-item[1], item[0])))
    return out.getvalue()
''',
    ),
    "Name the loudest singer": (
        "birdsong/summary.py",
        '''
def loudest(levels: dict[str, float]) -> str:
    """Return the species with the highest level in dB, "" for silence."""
    return max(levels, key=lambda species: levels[species], default="")
''',
    ),
}


class Work:
    """One story, step by step, at a pace that people can follow."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.began = time.monotonic()
        self.steps = 0

    def step(self, text: str, colour: str = BLUE) -> None:
        self.steps += 1
        tell(f"{colour}●{PLAIN} {text}")
        time.sleep(self.pace * DICE.uniform(0.6, 1.4))

    def envelope(self, result: str) -> str:
        """Return a result envelope with a believable bill."""
        tokens = {
            "input_tokens": DICE.randint(900, 2600),
            "output_tokens": DICE.randint(1200, 4200),
            "cache_creation_input_tokens": DICE.randint(4000, 16000),
            "cache_read_input_tokens": DICE.randint(60_000, 260_000),
        }
        prices = (3, 15, 3.75, 0.3)
        cost = sum(count * price for count, price in zip(tokens.values(), prices, strict=True)) / 1e6
        spent_ms = round((time.monotonic() - self.began) * 1000)
        return json.dumps(
            {
                "type": "result",
                "subtype": "success",
                "is_error": False,
                "duration_ms": spent_ms,
                "duration_api_ms": round(spent_ms * 0.7),
                "num_turns": self.steps,
                "result": result,
                "session_id": str(uuid.uuid4()),
                "total_cost_usd": round(cost, 6),
                "usage": tokens,
                "model": "demo-agent",
            },
            ensure_ascii=False,
        )


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=1.0, metavar="SECONDS", help="about this long for a step")
    pace = max(0.0, parser.parse_args().pace)
    prompt = sys.stdin.read()
    prd = next((Path(place) for place in PLACES if Path(place).is_file()), None)
    if prd is None:
        sys.exit("demo agent: this is not a demo project, there is no prd.json")
    work = Work(pace)
    work.step(f"read the prompt ({len(prompt.splitlines())} lines) and {prd}", GREY)
    document = json.loads(prd.read_text(encoding="utf-8"))
    story = next_story(document["userStories"])
    summary = do(story, prd, document, work) if story else "No story is ready; nothing was changed."
    is_last = not any(is_open(other) for other in document["userStories"])
    if is_last:
        tell(f"Every story is closed.\n\n{PROMISE}")
        summary += f"\n\n{PROMISE}"
    tell(work.envelope(summary))


def is_open(story: dict[str, Any]) -> bool:
    return not (story.get("passes") or story.get("failed") or story.get("blocked"))


def next_story(stories: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the open story with the lowest (priority, id) whose dependencies have passed."""
    passed = {story["id"] for story in stories if story.get("passes")}
    ready = [story for story in stories if is_open(story) and passed.issuperset(story.get("dependsOn", ()))]
    return min(ready, key=lambda story: (story["priority"], story["id"]), default=None)


def do(story: dict[str, Any], prd: Path, document: dict[str, Any], work: Work) -> str:
    """Do a story: code first and its commit, then the flip of `passes`, as agents do."""
    name = f"[{story['id']}] {story['title']}"
    branch = document.get("branchName", "")
    if branch and git("branch", "--show-current").strip() != branch:
        git("checkout", "-q", *([] if git("branch", "--list", branch).strip() else ["-b"]), branch)
        work.step(f"on branch {branch}", GREY)
    work.step(f"take {name}")
    for criterion in story.get("acceptanceCriteria", ()):
        tell(f"{GREY}    - {criterion}{PLAIN}")
    path, code = EDITS.get(story["title"], (f"notes/{uuid.uuid4().hex[:8]}.txt", f"{story['title']}\n"))
    work.step(f"read {path}")
    edit(Path(path), code)
    work.step(f"edit {path}: {code.count(chr(10))} lines added")
    tests = subprocess.run(
        [sys.executable, "-m", "unittest", "discover", "-q"], capture_output=True, text=True, check=False
    )
    tell(tests.stderr.strip())
    if tests.returncode:
        sys.exit("demo agent: the project's own tests fail, so nothing is committed")
    work.step("python -m unittest: passed", GREEN)
    git("add", "-A")
    git("commit", "-q", "-m", f"feat: {name}")
    work.step(f"commit {git('rev-parse', '--short', 'HEAD').strip()} feat: {name}", GREEN)
    story["passes"] = True
    write(prd, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    note = f"\n## {datetime.now(UTC):%Y-%m-%d} - {story['id']}\n- {story['title']}: done in {path}.\n"
    with prd.with_name("progress.txt").open("a", encoding="utf-8") as progress:
        progress.write(note)
    work.step(f"{story['id']} passes", GREEN)
    return f"{name} is done in {path} and committed; the project's tests pass."


def edit(path: Path, code: str) -> None:
    """Add code to a file, or make the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else ""
    path.write_text(f"{before}\n\n{code}" if before else code, encoding="utf-8")


def write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it meanwhile sees the old or the new."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with fresh.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)


def git(*args: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run([*GIT, *args], env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"demo agent: git {args[0]}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
