"""Two small real projects to try Andon with: git repositories with code, stories and a past."""

import json
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone

from projects import git

MANAGE = Path(__file__).resolve().parent.parent / "manage.py"
AGENT = Path(__file__).resolve().with_name("demo_agent.py")
MAX_ITERATIONS = 50

_IGNORED = """\
__pycache__/
logs/
usage.jsonl
.ralph.pid
.ralph/history.jsonl*
.ralph/budget.json
"""
_PATTERNS = """\
# Progress

## Codebase Patterns
- Standard library only; tests run with `python -m unittest`.
- Functions take and return plain values; reading sensors and files stays at the edge.
- Temperatures are °C, levels dB, durations seconds.
"""
_GREENHOUSE = {
    "README.md": "# greenhouse\n\nReads sensors and decides about windows, heating and water.\n",
    "greenhouse/__init__.py": "",
    "greenhouse/sensors.py": '''"""What the sensors say."""


def celsius(raw: int) -> float:
    """Return the temperature of a 10-bit reading: 0 is -40 °C, 1023 is 60 °C."""
    return raw / 1023 * 100 - 40
''',
    "greenhouse/climate.py": '''"""What to do about the temperature."""


def is_heating_needed(celsius: float, wanted: float = 16) -> bool:
    return celsius < wanted
''',
    "greenhouse/watering.py": '''"""What to do about dry soil."""


def is_dry(moisture: float) -> bool:
    return moisture < 0.25
''',
    "tests/__init__.py": "",
    "tests/test_climate.py": """import unittest

from greenhouse.climate import is_heating_needed
from greenhouse.sensors import celsius


class Climate(unittest.TestCase):
    def test_cold_needs_heating(self):
        self.assertTrue(is_heating_needed(4))

    def test_lowest_reading(self):
        self.assertEqual(celsius(0), -40)
""",
}
_BIRDSONG = {
    "README.md": "# birdsong\n\nFinds out who sings in a recording.\n",
    "birdsong/__init__.py": "",
    "birdsong/summary.py": '"""What a morning sounded like."""\n',
    "tests/__init__.py": "",
    "tests/test_package.py": """import unittest

import birdsong.summary


class Package(unittest.TestCase):
    def test_is_documented(self):
        self.assertIn("morning", birdsong.summary.__doc__)
""",
}
_BIRDSONG_PAST = {
    "US-001": {
        "birdsong/recording.py": '''"""Recordings as they come from the recorder."""

import wave
from pathlib import Path


def seconds(path: Path) -> float:
    """Return how long a WAV file plays."""
    with wave.open(str(path)) as recording:
        return recording.getnframes() / recording.getframerate()
''',
    },
    "US-002": {
        "birdsong/windows.py": '''"""Short pieces that can be listened to one by one."""


def windows(samples: list[float], length: int, step: int) -> list[list[float]]:
    """Return overlapping pieces of `length` samples; a shorter rest is left out."""
    return [samples[at : at + length] for at in range(0, len(samples) - length + 1, step)]
''',
        "tests/test_windows.py": """import unittest

from birdsong.windows import windows


class Windows(unittest.TestCase):
    def test_overlap(self):
        self.assertEqual(windows([1, 2, 3, 4, 5], 3, 2), [[1, 2, 3], [3, 4, 5]])
""",
    },
    "US-003": {
        "birdsong/level.py": '''"""How loud it is."""

import math


def level(samples: list[float]) -> float:
    """Return the level in dB below full scale; silence is -inf."""
    power = sum(sample * sample for sample in samples) / len(samples) if samples else 0
    return 10 * math.log10(power) if power else -math.inf
''',
    },
}


def make_demo(root: Path, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Make the demo projects under `root` and return their directories; one that exists is left as it is.

    `say` gets a line for each step. A project appears whole or not at all. Raises OSError and git.GitError.
    """
    root.mkdir(parents=True, exist_ok=True)
    makers = {"greenhouse": _make_greenhouse, "birdsong": _make_birdsong}
    for name, make in makers.items():
        project = root / name
        if project.exists() or project.is_symlink():
            say(f"{project} exists and is left as it is")
            continue
        workshop = root / f".andon-demo-{secrets.token_hex(4)}"
        try:
            (workshop / name).mkdir(parents=True)
            make(workshop / name)
            (workshop / name).rename(project)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
        say(f"made {project}: {_stories(project)}")
    return [root / name for name in makers]


def loop_argv(project: Path, pace: float) -> list[str]:
    """Return the command that loops over a demo project with the scripted agent, `pace` seconds a step."""
    return [
        sys.executable,
        str(MANAGE),
        "loop",
        str(project),
        "--agent",
        agent(pace),
        "--max",
        str(MAX_ITERATIONS),
    ]


def agent(pace: float) -> str:
    """Return the scripted agent's command as the loop takes it."""
    return shlex.join([sys.executable, str(AGENT), "--pace", f"{pace:g}"])


def start_loop(project: Path, pace: float, within_s: float = 30) -> str:
    """Start the loop of a demo project through Andon, once its worker has found it; returns what to tell of it.

    All demo projects get the scripted agent, so that Start works on their pages. Raises DomainError.
    """
    from projects import lifecycle
    from projects.events import SWEEP
    from projects.models import Project
    from services import commands, loops

    deadline = time.monotonic() + within_s
    while (row := Project.objects.filter(path=str(project)).first()) is None:
        if time.monotonic() > deadline:
            return f"{project} was not found, so its loop is not started"
        time.sleep(0.1)
    for each in Project.objects.filter(path__startswith=f"{project.parent}/", name__in=("greenhouse", "birdsong")):
        lifecycle.configure(each, agent=agent(pace), command="", by=SWEEP, now=timezone.now())
    row.refresh_from_db()
    if row.running or row.loop_is_ours:
        return f"the loop of {row.slug} runs already"
    started = loops.start(row, commands.Limits(iterations=MAX_ITERATIONS), by=SWEEP)
    return f"the loop of {row.slug} is started, process {started.pid}"


def _make_greenhouse(project: Path) -> None:
    _write(project, {**_GREENHOUSE, ".gitignore": _IGNORED, "scripts/ralph/progress.txt": _PATTERNS})
    _write_prd(project, "scripts/ralph/prd.json", _greenhouse_prd())
    _commit(project, "A greenhouse that knows when it is cold", datetime.now(UTC) - timedelta(hours=3))


def _make_birdsong(project: Path) -> None:
    began = datetime.now(UTC) - timedelta(hours=6)
    document = _birdsong_prd()
    stories = {story["id"]: story for story in document["userStories"]}
    progress = _PATTERNS
    _write(project, {**_BIRDSONG, ".gitignore": _IGNORED, ".ralph/progress.txt": progress})
    _write_prd(project, ".ralph/prd.json", document)
    _commit(project, "Listen to the birds", began)
    git.run(["checkout", "-q", "-b", document["branchName"]], project)
    for number, (key, code) in enumerate(_BIRDSONG_PAST.items(), start=1):
        at = began + timedelta(minutes=40 * number)
        _write(project, code)
        _commit(project, f"feat: [{key}] {stories[key]['title']}", at)
        # Agents flip the story after their commit, so the next commit carries it.
        stories[key]["passes"] = True
        progress += f"\n## {at:%Y-%m-%d} - {key}\n- {stories[key]['title']}: done in {next(iter(code))}.\n"
        _write(project, {".ralph/progress.txt": progress})
        _write_prd(project, ".ralph/prd.json", document)
    stories["US-004"] |= {
        "failed": True,
        "retries": 3,
        "failureReason": "The reference recordings hold no wren; three attempts recognised a robin instead.",
    }
    stories["US-005"] |= {"blocked": True, "notes": "Needs an account at the community site: ask a person."}
    _write_prd(project, ".ralph/prd.json", document)


def _commit(project: Path, message: str, at: datetime) -> None:
    if not (project / ".git").exists():
        git.run(["init", "-q", "--initial-branch=main", "--template="], project)
    identity = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "Andon Demo"), ("EMAIL", "demo@localhost"), ("DATE", at.isoformat()))
    }
    git.run(["add", "-A"], project)
    git.run(["commit", "-q", "-m", message], project, env=identity)


def _write(project: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_prd(project: Path, name: str, document: Mapping[str, Any]) -> None:
    _write(project, {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n"})


def _stories(project: Path) -> str:
    place = next(path for path in (project / "scripts/ralph/prd.json", project / ".ralph/prd.json") if path.exists())
    stories = json.loads(place.read_text(encoding="utf-8"))["userStories"]
    passed = sum(story["passes"] for story in stories)
    return f"{len(stories)} stories, {passed} passed"


def _story(
    number: int, title: str, *criteria: str, tags: tuple[str, ...], after: tuple[int, ...] = ()
) -> dict[str, Any]:
    return {
        "id": f"US-{number:03}",
        "title": title,
        "description": f"As the owner I want this: {title[0].lower()}{title[1:]}.",
        "acceptanceCriteria": [*criteria, "python -m unittest passes"],
        "priority": number,
        "passes": False,
        "notes": "",
        "tags": list(tags),
        "dependsOn": [f"US-{other:03}" for other in after],
    }


def _greenhouse_prd() -> dict[str, Any]:
    return {
        "project": "greenhouse",
        "branchName": "ralph/first-season",
        "description": "A greenhouse that looks after itself for one season.",
        "userStories": [
            _story(1, "Average several readings", "No readings raise ValueError", tags=("sensors",)),
            _story(
                2,
                "Ignore readings of a broken sensor",
                "Readings outside -40 to 60 °C are dropped",
                "The order is kept",
                tags=("sensors",),
                after=(1,),
            ),
            _story(
                3,
                "Open the windows when it is too warm",
                "20 % for each degree too warm, at most 100 %",
                tags=("climate",),
                after=(1,),
            ),
            _story(4, "Warn of frost", "The warning names the first hour of frost", tags=("climate", "alerts")),
            _story(5, "Water by soil moisture", "Wet soil gets no water", tags=("water",), after=(2,)),
            _story(6, "A daily report", "One line for a day", tags=("report",), after=(3, 5)),
        ],
    }


def _birdsong_prd() -> dict[str, Any]:
    return {
        "project": "birdsong",
        "branchName": "ralph/dawn-chorus",
        "description": "Who sings in the garden at dawn?",
        "userStories": [
            _story(1, "Tell how long a recording plays", "Reads WAV files", tags=("audio",)),
            _story(2, "Cut recordings into windows", "Windows overlap", tags=("audio",), after=(1,)),
            _story(3, "Measure the level of a window", "Silence is -inf dB", tags=("audio",), after=(2,)),
            _story(4, "Recognise a wren", "9 of 10 reference recordings", tags=("model",), after=(2,)),
            _story(5, "Share sightings with the community site", "Only on request", tags=("network",)),
            _story(6, "Count the species of a morning", "Detections under 0.7 do not count", tags=("summary",)),
            _story(7, "Export a checklist as CSV", "The commonest first", tags=("summary",), after=(6,)),
            _story(8, "Name the loudest singer", "Silence names nobody", tags=("summary",), after=(3,)),
        ],
    }
