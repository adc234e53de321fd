"""Kill journal writers with SIGKILL again and again, and read back what they were told was safe.

    uv run python -m tests.projects.kill_writers 1000

Four writers append lines of 20 KB to one session and note each turn they were told is on the disk; within milliseconds
all are killed, and everything noted has to be read back whole. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from projects import journal

WRITERS = 4
CONTENT = "x" * 20_000
ROUNDS_A_FILE = 5
LONGEST_S = 0.06
# How often another program's writer has died in the middle of a line.
TEARS = 0.4


def write(root: Path, session: str, name: str, acknowledged: int) -> None:
    """Append for ever; a turn is noted once the append has returned."""
    number = 0
    while True:
        number += 1
        event = {"event": "submitted", "turn_id": f"{name}-{number}", "content": CONTENT}
        written = journal.append_event(root, session, event)
        os.write(acknowledged, f"{written['turn_id']}\n".encode())


def strike(root: Path, session: str, label: str) -> set[str]:
    """Let the writers write for a moment, kill them, and return the turns that were acknowledged."""
    ends = []
    for writer in range(WRITERS):
        reader, acknowledged = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            try:
                write(root, session, f"{label}-{writer}", acknowledged)
            finally:
                os._exit(1)
        os.close(acknowledged)
        ends.append((pid, reader))
    time.sleep(random.uniform(0.002, LONGEST_S))
    noted: set[str] = set()
    for pid, _ in ends:
        os.kill(pid, signal.SIGKILL)
    for pid, reader in ends:
        os.waitpid(pid, 0)
        with os.fdopen(reader) as stream:
            noted.update(line.strip() for line in stream.read().split("\n")[:-1])
    return noted


def run(rounds: int, root: Path) -> dict[str, int]:
    counts = {"rounds": rounds, "acknowledged": 0, "lost": 0, "glued": 0, "torn": 0, "events": 0}
    noted: set[str] = set()
    for number in range(rounds):
        session = f"s-{number // ROUNDS_A_FILE}"
        if number % ROUNDS_A_FILE == 0:
            noted = set()
        before = journal.path_of(root, session)
        if before.exists() and random.random() < TEARS:
            with before.open("ab") as stream:
                stream.write(b'{"event":"submitted","content":"' + CONTENT.encode()[: random.randrange(20_000)])
            counts["torn"] += 1
        noted |= strike(root, session, f"r{number}")
        # Whatever was torn, the next append is readable and stands on a line of its own.
        noted.add(journal.append_event(root, session, {"event": "completed", "turn_id": f"r{number}"})["turn_id"])
        found = journal.read_journal(root, session)
        turns = {event["turn_id"] for event in found.events}
        counts["lost"] += len(noted - turns)
        counts["glued"] += len(found.malformed)
        if number % ROUNDS_A_FILE == ROUNDS_A_FILE - 1 or number == rounds - 1:
            counts["acknowledged"] += len(noted)
            counts["events"] += len(found.events)
            before.unlink()
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(int(sys.argv[1]), Path(folder))) + "\n")
