"""A worker that needs no agent: does what lines of a task's body tell it, and reports as an agent would.

A program of its own, standard library only: `demo_worker.py TASK_ID WORKSPACE CONTEXT_FILE`. Its lines:

    demo: steps N every S       N steps of S seconds (3 of 0.5), each with a heartbeat; then the task is complete
    demo: crash                 ends with exit code 1
    demo: hang                  does nothing for ever
    demo: exit CODE             ends with this code and without a verdict
    demo: ignore-term           lets SIGTERM and a lost attempt pass, and works on; without `steps` for 5 minutes
    demo: block REASON          blocks the task
    demo: service PORT          declares a web server on this port, then the task is complete
    demo: fail-until N          crashes in every attempt before the Nth

`steps` and `ignore-term` go with each of the others, which then come after the steps.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from kanban import andon_cli
else:
    # The program beside this one, whose folder Python searches first.
    import andon_cli

BODY_HEADING = "## What to do"
ARTEFACT = "demo-report.md"
STEPS, EVERY_S = 3, 0.5
STUBBORN_STEPS = 600

_FENCE = re.compile(r"(`{3,})[^`]*")
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_LINES = {
    "steps": re.compile(rf"steps ([0-9]{{1,6}})(?: every {_NUMBER})?"),
    "crash": re.compile("crash"),
    "hang": re.compile("hang"),
    "exit": re.compile("exit (25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})"),
    "ignore-term": re.compile("ignore-term"),
    "block": re.compile("block (.+)"),
    "service": re.compile("service ([0-9]{4,5})"),
    "fail-until": re.compile("fail-until ([0-9]{1,6})"),
}


def body_of(context: str) -> list[str]:
    """Return the lines of the task's body: the content of the fence that follows its heading."""
    lines: list[str] = []
    fence, is_body = "", False
    for line in context.split("\n"):
        if not fence and line.startswith("#"):
            is_body = line == BODY_HEADING
        elif not fence:
            found = _FENCE.fullmatch(line)
            fence = found.group(1) if found else ""
        elif line == fence:
            if is_body:
                return lines
            fence = ""
        elif is_body:
            lines.append(line)
    return lines


def orders_of(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """Return what the lines tell, by their first word; the last of a kind counts. ValueError with the bad line."""
    orders = {}
    for line in lines:
        name, colon, rest = line.strip().partition(":")
        if name != "demo" or not colon:
            continue
        words = " ".join(rest.split())
        kind = words.partition(" ")[0]
        found = _LINES[kind].fullmatch(words) if kind in _LINES else None
        if not found:
            raise ValueError(f"demo: {words}".strip()[:200])
        orders[kind] = tuple(group or "" for group in found.groups())
    return orders


class Worker:
    """One attempt. Each report is made by the program that agents use."""

    def __init__(self, task_id: str, workspace: str, orders: dict[str, tuple[str, ...]]) -> None:
        self.task_id = task_id
        self.workspace = Path(workspace)
        self.orders = orders
        number = os.environ.get("ANDON_RUN", "").rpartition("/")[2]
        self.attempt = int(number) if number.isdigit() else 1
        self.is_stubborn = "ignore-term" in orders

    def report(self, *words: str) -> int:
        """Tell the board; leave at once when this attempt is over."""
        code = andon_cli.main(words)
        if code == andon_cli.SUPERSEDED and not self.is_stubborn:
            sys.exit(code)
        return code

    def verdict(self, *words: str) -> NoReturn:
        """Tell the board what came of it, and end; with 1 when it did not hear."""
        sys.exit(1 if self.report(*words) else 0)

    def work(self) -> NoReturn:
        """Do what was ordered; never returns."""
        if self.is_stubborn:
            # Not through stdout, which the signal may have interrupted.
            signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"SIGTERM came and is ignored\n"))
        is_failing = self.attempt < int(self.orders.get("fail-until", ("0",))[0])
        ends = {"crash", "hang", "exit", "block"} & set(self.orders)
        done = self.steps() if "steps" in self.orders or not (is_failing or ends) else 0
        if is_failing or "crash" in ends:
            crash(f"attempt {self.attempt} of {self.task_id} was told to")
        if "hang" in ends:
            tell("hanging")
            while True:
                time.sleep(3600)
        if "exit" in ends:
            code = int(self.orders["exit"][0])
            tell(f"ending with {code}, without a verdict")
            sys.exit(code)
        if "block" in ends:
            tell("blocking the task")
            self.verdict("block", "--", self.orders["block"][0])
        if "service" in self.orders:
            self.declare(int(self.orders["service"][0]))
        (self.workspace / ARTEFACT).write_text(f"# {self.task_id}\n\nAttempt {self.attempt}, steps: {done}.\n", "utf-8")
        tell("complete")
        self.verdict("complete", "--result", f"Steps done: {done}. The report is {ARTEFACT}.", "--summary", "Done.")

    def steps(self) -> int:
        """Work, seen by everybody, and return in how many steps."""
        default = (str(STUBBORN_STEPS if self.is_stubborn else STEPS), str(EVERY_S))
        told = self.orders.get("steps", default)
        count, every = int(told[0]), float(told[1] or EVERY_S)
        for number in range(1, count + 1):
            tell(f"step {number} of {count}")
            self.report("heartbeat", "--note", f"step {number} of {count}")
            if number == 1:
                self.report("comment", f"The demo worker is at it; {count} steps of {every:g} s.")
            time.sleep(every)
        return count

    def declare(self, port: int) -> None:
        """Leave a sidecar for a web server over the workspace, in one step."""
        command = ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(self.workspace)]
        health = {"type": "http", "url": f"http://127.0.0.1:{port}/", "expect_status": 200, "timeout_s": 30}
        spec = {
            "name": f"demo-{port}",
            "cmd": "python3",
            "args": command,
            "ports": [port],
            "attrs": {"url": f"http://127.0.0.1:{port}/"},
            "healthcheck": health,
        }
        sidecar = {"specs": [spec], "written_by": f"{self.task_id}-{self.attempt}", "wi_id": self.task_id}
        path = Path(os.environ["ANDON_SIDECAR"])
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.draft")
        draft.write_text(json.dumps(sidecar, indent=2), "utf-8")
        draft.replace(path)
        tell(f"a service on port {port} is declared")


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def crash(why: str) -> NoReturn:
    raise RuntimeError(f"the demo worker crashes: {why}")


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: demo_worker.py TASK_ID WORKSPACE CONTEXT_FILE")
    task_id, workspace, context = sys.argv[1:]
    lines = body_of(Path(context).read_text("utf-8"))
    try:
        orders = orders_of(lines)
    except ValueError as error:
        tell(f"not understood: {error}")
        Worker(task_id, workspace, {}).verdict("block", f"This line is not understood: {error}")
    else:
        Worker(task_id, workspace, orders).work()


if __name__ == "__main__":
    main()
