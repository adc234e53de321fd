"""What starting a project's loop runs: its own command, else our runner with the configured agent, else ralph.sh."""

import os
import shlex
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from django.conf import settings

from projects.errors import Rejected, Unprocessable
from projects.models import Project

SCRIPT = Path("scripts/ralph/ralph.sh")
MANAGE = settings.BASE_DIR / "manage.py"
ITERATIONS = "{max_iterations}"
DEFAULT_ITERATIONS = 10
MOST_ITERATIONS = 10**6
MOST_USD = Decimal(10**6)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a loop may go: iterations and US dollars (None = its own default); `resume` goes on with its last run."""

    iterations: int | None = None
    cost: Decimal | None = None
    resume: bool = False

    def check(self) -> None:
        """Raise Rejected `limit-invalid` for what no loop could be limited to."""
        if self.iterations is not None and not 1 <= self.iterations <= MOST_ITERATIONS:
            raise Rejected("limit-invalid", f"max_iterations is a whole number from 1 to {MOST_ITERATIONS}.")
        if self.cost is not None and not (self.cost.is_finite() and 0 < self.cost <= MOST_USD):
            raise Rejected("limit-invalid", f"max_cost_usd is a number above 0, at most {MOST_USD}.")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, what its environment needs beyond every child's, and whose it is: project, runner or script."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def shown(self) -> str:
        """What is run, for whoever may set it."""
        return self.env.get("ANDON_LOOP_AGENT") or shlex.join(self.argv)


def command(project: Project, limits: Limits) -> Command:
    """Return what starting the loop of a project runs.

    In a project's own command `{max_iterations}` stands for that limit. Refuses (Unprocessable) `no-loop-command`, and
    `limit-unsupported` for a limit that what is run would not keep.
    """
    limits.check()
    if project.loop_command:
        return _own(project, limits)
    if agent := project.loop_agent or settings.ANDON_LOOP_AGENT:
        return _runner(project, agent, limits)
    script = Path(project.path) / SCRIPT
    if _is_program_of(project, script):
        _need_no_cost(limits, SCRIPT.name)
        return Command([str(script), str(limits.iterations or DEFAULT_ITERATIONS)], source="script")
    raise Unprocessable(
        "no-loop-command",
        f"Nothing says how a loop of {project.slug} is started. Set its agent or loop command on its page, or "
        f"ANDON_LOOP_AGENT for all projects, or add an executable {SCRIPT}.",
    )


def _runner(project: Project, agent: str, limits: Limits) -> Command:
    """Return our own runner; the agent goes by the environment, which nobody is shown: it may hold a key."""
    words = [sys.executable, str(MANAGE), "loop", project.path]
    words += ["--max", str(limits.iterations or DEFAULT_ITERATIONS)]
    if limits.cost is not None:
        words += ["--max-cost", f"{limits.cost:f}"]
    if limits.resume:
        words.append("--resume")
    # Settings are read at its start; what opens Andon itself the runner keeps from the agent.
    return Command(words, {"ANDON_HOME": str(settings.ANDON_HOME), "ANDON_LOOP_AGENT": agent}, source="runner")


def _own(project: Project, limits: Limits) -> Command:
    words = shlex.split(project.loop_command)
    _need_no_cost(limits, "The project's own loop command")
    if limits.iterations is not None and not any(ITERATIONS in word for word in words):
        raise Unprocessable("limit-unsupported", f"The project's own loop command has no {ITERATIONS} to put it in.")
    number = str(limits.iterations or DEFAULT_ITERATIONS)
    return Command([word.replace(ITERATIONS, number) for word in words], source="project")


def _need_no_cost(limits: Limits, what: str) -> None:
    if limits.cost is not None:
        raise Unprocessable("limit-unsupported", f"{what} knows no limit of cost. Only Andon's own runner does.")


def _is_program_of(project: Project, script: Path) -> bool:
    """Say whether a file is executable and, links followed, lies in the project."""
    inside = Path(os.path.realpath(script)).is_relative_to(os.path.realpath(project.path))
    return inside and script.is_file() and os.access(script, os.X_OK)
