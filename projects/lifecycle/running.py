"""What Andon knows of a loop beside its files: who was started, how it ended, what start runs, what it may cost."""

import shlex
import signal
from datetime import datetime
from decimal import Decimal
from typing import Any

from projects.errors import Rejected
from projects.events import By, record, writing
from projects.lifecycle import stops
from projects.models import LoopStop, Project
from projects.states import STOP_OPEN

LONGEST_COMMAND = 2000


def note_loop(slug: str, process: dict[str, Any]) -> None:
    """Note the loop that was started for a project: {process, pid, start_ticks, boot_id, started_at, by}.

    The importer shows it as running from then on, whether or not it writes a pid file, and tells of it. Inside
    `writing()`.
    """
    Project.objects.filter(slug=slug).update(loop_process=process)


def note_loop_end(slug: str, process: int, *, exit_code: int | None, cause: str, now: datetime) -> None:
    """Note how the loop that Andon had started ended, and settle what was asked of it; the importer tells it.

    Inside `writing()`. Nothing is noted when another one has been started since.
    """
    row = Project.objects.filter(slug=slug).only("pk", "loop_process").first()
    if row is not None and row.loop_process.get("process") == process:
        ended = {**row.loop_process, "ended": True, "exit_code": exit_code, "cause": cause}
        Project.objects.filter(pk=row.pk).update(loop_process=ended)
    for stop in LoopStop.objects.filter(project=slug, process=process, status__in=STOP_OPEN):
        killed = exit_code == -signal.SIGKILL and stop.was_killed(now)
        stops.settle(stop, killed=killed, now=now)


def configure(project: Project, *, agent: str, command: str, by: By, now: datetime) -> None:
    """Set what starting a project's loop runs: the runner's agent, or another command; both "" = the default.

    Refuses (Rejected `loop-command-invalid`) what cannot be read as words, and both at once. Records loop.configured.
    """
    fields = {"loop_agent": _words(agent), "loop_command": _words(command)}
    if all(fields.values()):
        raise Rejected("loop-command-invalid", "Give an agent for Andon's runner or a command of its own, not both.")
    with writing():
        if Project.objects.filter(pk=project.pk).exclude(**fields).update(**fields):
            # Not the words: they may hold a key, and events are for whoever may read.
            what = next((name.removeprefix("loop_") for name, text in fields.items() if text), "default")
            record("loop.configured", project.subject, by=by, now=now, project=project.slug, what=what)
    project.loop_agent, project.loop_command = fields["loop_agent"], fields["loop_command"]


def _words(text: str) -> str:
    text = text.strip()
    if len(text) > LONGEST_COMMAND or any(ord(sign) < 32 for sign in text):
        raise Rejected("loop-command-invalid", f"Give one line of at most {LONGEST_COMMAND} characters.")
    try:
        shlex.split(text)
    except ValueError as error:
        raise Rejected("loop-command-invalid", f"It cannot be read as words: {error}.") from None
    return text


def tell_budget(project: Project, iterations: int | None, cost: Decimal | None, *, by: By, now: datetime) -> None:
    """Record loop.budget_set: the file that the runner reads before each iteration was written."""
    with writing():
        record(
            "loop.budget_set",
            project.subject,
            by=by,
            now=now,
            project=project.slug,
            max_iterations=iterations,
            max_cost_usd=None if cost is None else float(cost),
        )
