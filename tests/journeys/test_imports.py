"""Imports of journals that are killed -9 at any moment, in a process and a database of their own."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from projects import journal
from tests.running import Up, own_database

pytestmark = pytest.mark.journey
SESSIONS, LINES, STRIKES = 6, 1000, 6
STATES = ("submitted", "worker_started", "assistant_started", "completed")


def write(root: Path, session: str, first: int, *, torn: bool) -> None:
    """Append lines as a program would that tears some and dies in the last."""
    path = journal.path_of(root, session)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        for number in range(first, first + LINES):
            name, turn = STATES[number % len(STATES)], f"t{number // len(STATES)}"
            line = {"event": name, "turn_id": turn, "created_at": 1e9 + number, "content": "x" * 60}
            stream.write(b"{torn\n" if number % 97 == 0 else json.dumps(line).encode() + b"\n")
        if torn:
            stream.write(b'{"event": "compl')


def begin(up: Up) -> subprocess.Popen[str]:
    env = {**up.env, "DJANGO_SETTINGS_MODULE": "config.settings"}
    words = [sys.executable, "-m", "tests.projects.one_import"]
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def whole(up: Up) -> tuple[dict, float]:
    started = time.monotonic()
    process = begin(up)
    begun = time.monotonic()
    found = json.loads(process.communicate(timeout=120)[0])
    assert process.returncode == 0
    assert begun - started < 60
    return found, time.monotonic() - begun


def test_killed_at_random_moments_it_has_every_line_once(tmp_path: Path, record_property):
    seed = random.randrange(1_000_000)
    dice = random.Random(seed)
    with own_database() as first, own_database() as second:
        struck, quiet = Up(tmp_path / "struck", env=first), Up(tmp_path / "quiet", env=second)
        for up in (struck, quiet):
            up.env["ANDON_JOURNAL_ROOTS"] = str(tmp_path / "journals")
            up.manage("migrate", "-v0")
        for number in range(SESSIONS):
            write(tmp_path / "journals", f"s{number}", 0, torn=True)
        _, takes_s = whole(quiet)
        survived = 0
        for strike in range(STRIKES):
            process = begin(struck)
            time.sleep(dice.uniform(0, takes_s))
            survived += process.poll() is not None
            process.kill()
            process.communicate()
            if strike == STRIKES // 2:
                # The program has come back, and goes on behind the line that it tore.
                for number in range(SESSIONS):
                    with journal.path_of(tmp_path / "journals", f"s{number}").open("ab") as stream:
                        stream.write(b"\n")
                    write(tmp_path / "journals", f"s{number}", LINES, torn=False)
        after, expected = whole(struck)[0], whole(quiet)[0]
    assert len(expected["records"]) >= SESSIONS * 2 * LINES
    assert after["records"] == expected["records"], seed
    assert after["turns"] == expected["turns"], seed
    assert len(set(map(tuple, after["events"]))) == len(after["events"]), "something was told twice"
    assert survived < STRIKES
    last = dict(after["events"])
    assert last == dict(expected["events"]), seed
    record_property(
        "summary", f"imports killed -9 (seed {seed}): {STRIKES - survived} of {STRIKES} in the middle, all lines once"
    )
