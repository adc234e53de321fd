"""The loop itself: limits, waiting, and what is told about each iteration."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from config.loop import agent, answer, files
from config.loop.commits import Commits
from config.loop.earlier import Earlier, NothingToResume, last_run
from projects import budget, history, ralph
from projects.ralph.text import one_line
from projects.usage import Usage

EXIT_OK = 0
EXIT_GONE = 1
EXIT_BUSY = 75  # EX_TEMPFAIL of sysexits.h
SIGNAL_EXITS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}
FIRST_WAIT_S = 60
LONGEST_WAIT_S = 30 * 60
MAX_TOLD_PROMPT = 64 * 1024

SENTENCES = {
    "completion_promise": "complete",
    "max_iterations": "the limit of iterations is reached: {iterations} of {most}",
    "max_cost": "the limit of cost is reached: {spent} of {dearest}",
    "consecutive_failures": "too many iterations failed one after another: {failures}",
    "stopped": "asked to stop",
    "workspace_gone": "the project's directory is gone",
}


class WrongUsage(ValueError):
    """The loop cannot be started like this; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a loop stops: iterations of this run, US dollars, seconds an iteration, failures in a row.

    `kill_after_s`: seconds between TERM and KILL for an agent that must end.
    """

    iterations: int = 10
    cost: Decimal | None = None
    story_timeout_s: float | None = None
    failures: int = 5
    kill_after_s: float = 10


def print_line(text: str) -> None:
    """Print one line at once; a terminal or pipe that has gone away does not end a loop."""
    try:
        print(f"loop: {one_line(text, 500)}", flush=True)  # noqa: T201
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(
    root: Path,
    argv: Sequence[str],
    *,
    limits: Limits,
    prompt_file: Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print_line,
    sleep: Callable[[float], object] | None = None,
) -> int:
    """Loop over a project until it is done or a limit is reached; return the process's exit code.

    `argv` is the agent's command, run in `root` without a shell. `resume` goes on with the project's last run
    if there is one to go on with: what it has used counts toward `limits`. `sleep` (seconds) waits out a quota;
    the default is cut short by a signal. A budget file that is written meanwhile replaces the `limits` that it names.
    Works in `root` meanwhile. Raises WrongUsage before anything was written.
    """
    root = root.resolve()
    prd = _check(root, argv, prompt_file)
    prompt_file = prompt_file and prompt_file.absolute()
    # Before the pid file shows that there is a loop whose budget can be set.
    old_budget = budget.mark(root)
    # Whoever finds our pid believes it only if the process lives in the project.
    with chdir(root), agent.Signals() as signals:
        try:
            with ralph.project_lock(root):
                files.claim_pid(root, prd.parent)
                try:
                    return _Loop(
                        root=root,
                        prd=prd,
                        argv=list(argv),
                        limits=limits,
                        prompt_file=prompt_file,
                        resume=resume,
                        signals=signals,
                        say=say,
                        sleep=sleep or signals.wait,
                        old_budget=old_budget,
                    ).run()
                finally:
                    files.release_pid(root, prd.parent)
        except (ralph.ProjectBusy, files.Busy) as busy:
            say(f"not started: {busy}")
            return EXIT_BUSY


def _check(root: Path, argv: Sequence[str], prompt_file: Path | None) -> Path:
    if not root.is_dir():
        raise WrongUsage(f"{root} is not a directory")
    prd = ralph.find_prd(root)
    if prd is None:
        raise WrongUsage(f"{root} holds no prd.json; looked for {', '.join(ralph.PRD_PLACES)}")
    if not argv or not argv[0]:
        raise WrongUsage("no agent was given")
    found = shutil.which(str(root / argv[0]) if "/" in argv[0] else argv[0])
    if found is None:
        raise WrongUsage(f"the agent {argv[0]} is not a program that can be run")
    if prompt_file is not None and not prompt_file.is_file():
        raise WrongUsage(f"the prompt {prompt_file} is not a file")
    return prd


@dataclass(kw_only=True)
class _Loop:
    """One run over one project; the caller holds the lock. `prd` is relative to `root`.

    `old_budget` is the mark of a budget file that was there before: it was of another run, and `limits` are newer.
    """

    root: Path
    prd: Path
    argv: list[str]
    limits: Limits
    prompt_file: Path | None
    resume: bool
    signals: agent.Signals
    say: Callable[[str], None]
    sleep: Callable[[float], object]
    old_budget: tuple[int, ...] | None
    run_id: str = field(default_factory=lambda: f"{_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(6)}")
    prompt: bytes = b""
    iterations: int = 0
    failures: int = 0
    spent: Decimal = Decimal(0)
    unknown_costs: int = 0
    most: int = 0
    dearest: Decimal | None = None
    is_done: bool = False
    is_warned: bool = False

    def run(self) -> int:
        self._read_prompt()
        earlier = self._earlier()
        if earlier is None:
            told = self.prompt.decode("utf-8", "replace")[:MAX_TOLD_PROMPT]
            self._record("loop_started", {"prompt": told}, pid=os.getpid())
            self.say(f"run {self.run_id} in {self.root}, agent {self.argv[0]}")
        else:
            self._record("loop_resumed", {"from_iteration": earlier.last}, pid=os.getpid())
            self.say(f"run {self.run_id} goes on in {self.root}, agent {self.argv[0]}; used already: {self._total()}")
        if self.old_budget is not None:
            self.say(f"{budget.BUDGET} is of before this start and is ignored until it is written again")
        self._look_for_done(self._stories())
        while not (reason := self._reason_to_stop()):
            self._iterate()
        return self._finish(reason)

    def _earlier(self) -> Earlier | None:
        """Take over the id and the use of the run to go on with; None when this is a new one."""
        if not self.resume:
            return None
        try:
            earlier = last_run(self.root, self.prd.parent)
        except NothingToResume as reason:
            self.say(f"nothing to resume: {reason}; this is a new run")
            return None
        if earlier.warning:
            self.say(f"warning: {earlier.warning}")
        self.run_id, self.iterations = earlier.run, earlier.iterations
        self.spent, self.unknown_costs = earlier.cost, earlier.unknown_costs
        return earlier

    def _total(self) -> str:
        unknown = f", {self.unknown_costs} of unknown cost" if self.unknown_costs else ""
        return f"{self.iterations} iteration{'' if self.iterations == 1 else 's'}, {_dollars(self.spent)}{unknown}"

    def _finish(self, reason: str) -> int:
        total = self._total()
        if reason == "stopped" and self.signals.count > 1:
            self._record("loop_terminated", {"signal": self.signals.last})
            self.say(f"terminated by {self.signals.last} ({total})")
            return SIGNAL_EXITS[self.signals.last]
        self._record("loop_completed", {"reason": reason})
        figures = {
            "iterations": self.iterations,
            "most": self.most,
            "spent": _dollars(self.spent),
            "dearest": _dollars(self.dearest or Decimal(0)),
            "failures": self.failures,
        }
        self.say(f"ended, {reason}: {SENTENCES[reason].format(**figures)} ({total})")
        return EXIT_GONE if reason == "workspace_gone" else EXIT_OK

    def _reason_to_stop(self) -> str:
        """Return a reason in the words of spec/journal.md 2, or ""."""
        if not self.root.is_dir():
            return "workspace_gone"
        told, warning = budget.read(self.root, unless=self.old_budget)
        if warning:
            self.say(f"warning: {warning}")
        self.most = self.limits.iterations if told.iterations is None else told.iterations
        self.dearest = self.limits.cost if told.cost is None else told.cost
        reasons = {
            "completion_promise": self.is_done,
            "stopped": self.signals.count > 0,
            "consecutive_failures": self.failures >= self.limits.failures,
            "max_iterations": self.iterations >= self.most,
            "max_cost": self.dearest is not None and self.spent >= self.dearest,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _iterate(self) -> None:
        """Run one iteration; a quota answer is waited out inside it, and its attempts share one log."""
        self._read_prompt()
        current = ralph.current_story(self._stories())
        story = current.id if current else None
        commits = Commits(self.root)
        try:
            number, log = files.open_log(self.root, self.prd.parent)
        except OSError as error:
            self.iterations += 1
            self.failures += 1
            self.say(f"failed: no log can be made: {error}")
            return
        try:
            self._record("iteration_started", {"iteration": number}, story=story)
            self.say(f"iteration {number} started: {f'{story} {current.title}' if current else 'no open story'}")
            wait_s = FIRST_WAIT_S
            while True:
                ending, said = self._attempt(log)
                if not said.is_quota:
                    break
                self._bill(number, story, ending, said)
                self.say(f"iteration {number} met a quota: waiting {wait_s} s")
                self.sleep(wait_s)
                if self._reason_to_stop():
                    return
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        finally:
            os.close(log)
        self._account(number, story, ending, said, commits)

    def _attempt(self, log: int) -> tuple[agent.Ending, answer.Answer]:
        start = os.fstat(log).st_size
        ending = agent.run_agent(
            self.argv,
            cwd=self.root,
            prompt=self.prompt,
            log=log,
            signals=self.signals,
            timeout_s=self.limits.story_timeout_s,
            kill_after_s=self.limits.kill_after_s,
            on_signal=lambda: self.say(
                f"{self.signals.last}: stopping after this iteration; once more ends the agent now"
            ),
        )
        said = answer.judge(
            answer.read_output(log, start),
            prompt=self.prompt,
            exit_code=ending.exit_code,
            was_cut=bool(ending.cut),
        )
        if said.warning:
            self.say(f"warning: {said.warning}")
        return ending, said

    def _account(
        self, number: int, story: str | None, ending: agent.Ending, said: answer.Answer, commits: Commits
    ) -> None:
        self.iterations += 1
        self.failures = self.failures + 1 if said.failed else 0
        self._bill(number, story, ending, said)
        stories = self._stories()
        self.is_done = said.promised
        why = {"why": ending.cut} if ending.cut else {}
        self._record(
            "iteration_completed",
            {"iteration": number, "success": not said.failed},
            story=story,
            exit_code=ending.exit_code,
            commits=commits.made(),
            **why,
        )
        outcome = f"failed ({ending.cut or f'exit {ending.exit_code}'})" if said.failed else "succeeded"
        cost = said.usage.cost if said.usage else None
        price = "cost unknown" if cost is None else _dollars(cost)
        self.say(f"iteration {number} {outcome} after {ending.duration_s:.0f} s, {price}")
        if said.promised:
            self.say("the agent gave its completion promise")
        self._look_for_done(stories)

    def _bill(self, number: int, story: str | None, ending: agent.Ending, said: answer.Answer) -> None:
        """Count the cost and append to usage.jsonl; a quota answer has a line only if it cost something."""
        bill = said.usage or Usage()
        self.spent += bill.cost or 0
        if said.is_quota and not bill.cost:
            return
        if bill.cost is None:
            self.unknown_costs += 1
            if not self.is_warned and self.dearest is not None:
                self.is_warned = True
                self.say("warning: the agent reports no cost, so the limit of cost cannot hold")
        record = {
            "ts": _now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "project": self.root.name,
            "story": story,
            "iteration": number,
            "total_cost_usd": None if bill.cost is None else float(bill.cost),
            "input_tokens": bill.input_tokens,
            "output_tokens": bill.output_tokens,
            "cache_creation_input_tokens": bill.cache_creation_tokens,
            "cache_read_input_tokens": bill.cache_read_tokens,
            "duration_ms": round(ending.duration_s * 1000),
            "num_turns": bill.num_turns,
            "exit_code": ending.exit_code,
            "is_error": said.failed,
            "subtype": ending.cut or bill.subtype,
            "rate_limited": said.is_quota or None,
            "session_id": bill.session_id,
            "model": bill.model,
            "run": self.run_id,
        }
        try:
            history.append_line(
                self.root / self.prd.parent / "usage.jsonl",
                {name: value for name, value in record.items() if value is not None},
            )
        except OSError as error:
            self.say(f"warning: usage.jsonl was not written: {error}")

    def _record(self, kind: str, fields: dict[str, Any], **more: object) -> None:
        known = {name: value for name, value in more.items() if value is not None}
        try:
            history.append(self.root / history.HISTORY, kind, fields, data={"run": self.run_id, **known}, at=_now())
        except (OSError, ValueError) as error:
            self.say(f"warning: {kind} was not recorded: {error}")

    def _stories(self) -> tuple[ralph.Story, ...]:
        try:
            return ralph.parse_prd(ralph.read_inside(self.root, self.prd, ralph.MAX_BYTES)).stories
        except (OSError, ralph.PrdError) as error:
            self.say(f"warning: {self.prd} cannot be read: {error}")
            return ()

    def _look_for_done(self, stories: tuple[ralph.Story, ...]) -> None:
        if stories and all(story.passes for story in stories):
            self.is_done = True
            self.say("every story has passed")

    def _read_prompt(self) -> None:
        """Read the prompt anew, so that it can be edited under way; unreadable, it stays as it was."""
        try:
            if self.prompt_file is not None:
                with self.prompt_file.open("rb") as stream:
                    self.prompt = stream.read(files.MAX_PROMPT)
            elif found := files.find_prompt(self.root, self.prd):
                self.prompt = ralph.read_inside(self.root, found, files.MAX_PROMPT)
            else:
                self.prompt = files.built_in_prompt(self.prd)
        except OSError as error:
            self.say(f"warning: the prompt cannot be read: {error}")
            self.prompt = self.prompt or files.built_in_prompt(self.prd)


def _now() -> datetime:
    return datetime.now(UTC)


def _dollars(amount: Decimal) -> str:
    """Return an amount with its cents, and down to a millionth when it has such parts."""
    parts = f"{amount:.6f}".rstrip("0").partition(".")
    return f"${parts[0]}.{parts[2]:0<2}"
