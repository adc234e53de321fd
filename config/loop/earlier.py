"""What the last run of our runner in a project has used already, read from what it left there."""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from projects import history
from projects.ralph.text import one_line
from projects.usage import Usage, parse_record

MAX_BYTES = 16 * 1024 * 1024

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class NothingToResume(LookupError):
    """There is no run to go on with; the text says why."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run and what it has used: `last` is the number of its last completed iteration, 0 for none.

    `cost` is US dollars, without those of the `unknown_costs` records that tell none. `warning` is a sentence
    or "".
    """

    run: str
    iterations: int
    last: int
    cost: Decimal
    unknown_costs: int
    warning: str = ""


def last_run(root: Path, folder: Path) -> Earlier:
    """Return the last run that our runner began in the project at `root`, from the last 16 MiB of its records.

    `folder`, relative to `root`, holds usage.jsonl. Raises NothingToResume: no run, or it is complete.
    """
    run, iterations, last = _recorded(root)
    try:
        bills = _bills(root, folder / "usage.jsonl", run)
        warning = ""
    except FileNotFoundError:
        bills, warning = [], ""
    except OSError as error:
        bills, warning = [], f"what the run has cost is not known: {error}"
    costs = [bill.cost for bill in bills]
    return Earlier(
        run=run,
        iterations=iterations,
        last=last,
        cost=sum((cost for cost in costs if cost is not None), Decimal(0)),
        unknown_costs=costs.count(None),
        warning=warning,
    )


def _recorded(root: Path) -> tuple[str, int, int]:
    """Return the run's id, how many iterations it completed, and the number of the last one."""
    numbers: dict[str, list[int]] = {}
    complete: dict[str, bool] = {}
    try:
        for line in history.newest(root, MAX_BYTES):
            run = line.data.get("run")
            if not isinstance(run, str) or not _RUN.fullmatch(run):
                continue
            if line.kind == "iteration_completed":
                number = line.fields.get("iteration")
                numbers.setdefault(run, []).append(number if type(number) is int and 0 < number <= 10**9 else 0)
            elif line.kind == "loop_completed":
                # The newest of a run counts: one that ended at a limit may have been resumed since.
                complete.setdefault(run, line.fields.get("reason") == "completion_promise")
            elif line.kind in {"loop_resumed", "loop_terminated"}:
                complete.setdefault(run, False)
            elif line.kind == "loop_started":
                if complete.get(run):
                    raise NothingToResume(f"run {run} is complete")
                known = numbers.get(run, [])
                return run, len(known), max(known, default=0)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NothingToResume(f"the history cannot be read: {one_line(str(error), 200)}") from None
    raise NothingToResume("no run of this runner is recorded here")


def _bills(root: Path, path: Path, run: str) -> list[Usage]:
    bills = []
    for line in history.last_lines(root, path, MAX_BYTES):
        # Most lines of a long file belong to other runs.
        if run.encode() not in line:
            continue
        try:
            bill = parse_record(json.loads(line))
        except (ValueError, RecursionError):
            continue
        if bill.run == run:
            bills.append(bill)
    return bills
