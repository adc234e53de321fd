"""`manage.py loop DIR --agent "…"`: the command line of config.loop."""

import argparse
import os
import shlex
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter

from config.loop import Limits, WrongUsage, run

EPILOG = """\
Each iteration starts the agent once in DIR, gives it the prompt on its standard input and keeps its raw
output in logs/iteration-N.log beside the prd.json, and a line in usage.jsonl and .ralph/history.jsonl.

The loop ends when the agent prints <promise>COMPLETE</promise> on a line of its own, when every story has
passed, at a limit, or after 5 failed iterations in a row. When the agent meets a quota the loop waits (1
minute, doubling up to 30) and tries again; that counts as nothing. Before each iteration the loop reads
{"max_iterations": N, "max_cost_usd": X} from .ralph/budget.json, which replace --max and --max-cost: only
from a file that is written while the loop runs. An older one is ignored.

With --resume the loop goes on with the last run that this command began in DIR, under the same run id: its
iterations in .ralph/history.jsonl and its costs in usage.jsonl count toward the limits, so that a run which
reached one needs a higher one. Where there is no such run, or it is complete, a new one begins.

Ctrl-C or TERM: stop after the running iteration. Once more: end the agent now (TERM, KILL after 10 s).

exit status: 0 complete, a limit, or stopped; 1 the directory is gone or cannot be written; 2 wrong usage;
75 another loop works there; 128 + signal when a second signal ended the agent.

example: manage.py loop ~/workspace/greenhouse --agent "claude -p --output-format json" --max-cost 5
"""


class _Formatter(argparse.RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Django's order of options, our line ends."""


class Command(BaseCommand):
    help = "Run a coding agent again and again until every story of a project has passed."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = _Formatter
        parser.epilog = EPILOG
        parser.add_argument("directory", metavar="DIR", type=Path, help="the project, which holds a prd.json")
        parser.add_argument(
            "--agent",
            default=os.environ.get("ANDON_LOOP_AGENT"),
            metavar="COMMAND",
            help='as typed in a shell, e.g. "claude -p"; no shell is used (default: ANDON_LOOP_AGENT)',
        )
        parser.add_argument(
            "--prompt",
            type=Path,
            metavar="FILE",
            help="default: prompt.md or PROMPT.md beside the prd.json, else one of our own",
        )
        parser.add_argument("--max", type=_count, default=10, metavar="N", help="iterations (default 10)")
        parser.add_argument("--max-cost", type=_dollars, metavar="USD", help="stop when this much is spent")
        parser.add_argument(
            "--resume",
            action="store_true",
            help="go on with the last run: what it has used counts toward --max and --max-cost",
        )
        parser.add_argument(
            "--story-timeout",
            type=_minutes,
            metavar="MIN",
            help="end an iteration that takes longer; it failed",
        )

    def handle(self, **options: Any) -> None:
        if not options["agent"]:
            raise CommandError("no agent was given: use --agent or set ANDON_LOOP_AGENT", returncode=2)
        try:
            argv = shlex.split(options["agent"])
        except ValueError as error:
            raise CommandError(f"--agent cannot be read: {error}", returncode=2) from None
        limits = Limits(options["max"], options["max_cost"], options["story_timeout"])
        try:
            status = run(
                options["directory"], argv, limits=limits, prompt_file=options["prompt"], resume=options["resume"]
            )
        except WrongUsage as refusal:
            raise CommandError(str(refusal), returncode=2) from None
        except OSError as error:
            raise CommandError(f"not started: {error}") from None
        sys.exit(status)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError("give a whole number from 1 up")
    return int(text)


def _dollars(text: str) -> Decimal:
    return _above_zero(text, "give US dollars, for example 2.50")


def _minutes(text: str) -> float:
    """Return seconds."""
    return float(_above_zero(text, "give minutes, for example 45")) * 60


def _above_zero(text: str, advice: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or not 0 < number <= 10**6:
        raise argparse.ArgumentTypeError(advice)
    return number
