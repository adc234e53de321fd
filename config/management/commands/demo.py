"""`manage.py demo [DIR]`: two real projects to try Andon with."""

import math
import shlex
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from config import demo, loop
from projects.git import GitError


class Command(BaseCommand):
    help = (
        "Make two real git repositories with stories, greenhouse and birdsong, to try Andon with. "
        "What exists already is left as it is. The loop on them runs a scripted agent: no account, no cost, "
        "but it really edits, tests and commits."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "directory",
            metavar="DIR",
            nargs="?",
            type=Path,
            help="where (default: the first directory of ANDON_WORKSPACE, where Andon looks for projects)",
        )
        parser.add_argument("--run", action="store_true", help="then run the loop on greenhouse, here")
        parser.add_argument(
            "--pace",
            type=_seconds,
            default=1.0,
            metavar="SECONDS",
            help="about this long for each step of the scripted agent (default 1)",
        )

    def handle(self, **options: Any) -> None:
        root = (options["directory"] or settings.ANDON_WORKSPACE[0]).expanduser().resolve()
        try:
            projects = demo.make_demo(root, self._say)
        except OSError as error:
            raise CommandError(f"the demo cannot be made in {root}: {error}") from None
        except GitError as error:
            raise CommandError(str(error)) from None
        status = 0
        if options["run"]:
            self._say(f"running the loop on {projects[0]}; Ctrl-C stops it after the running story")
            agent = shlex.split(demo.agent(options["pace"]))
            status = loop.run(projects[0], agent, limits=loop.Limits(iterations=demo.MAX_ITERATIONS))
        self._say("")
        if root not in settings.ANDON_WORKSPACE:
            self._say(f"Andon does not look here yet: set ANDON_WORKSPACE={shlex.quote(str(root))}")
        self._say("Next: see the projects on the board:")
        self._say(f"  {shlex.join(['python', str(demo.MANAGE), 'up'])}")
        self._say("and run the loop on one of them, from its page or here:")
        for project in projects:
            self._say(f"  {shlex.join(demo.loop_argv(project, options['pace']))}")
        if status:
            sys.exit(status)

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _seconds(text: str) -> float:
    try:
        pace = float(text)
    except ValueError:
        pace = math.nan
    if not 0 <= pace <= 60:
        raise ArgumentTypeError("give seconds from 0 to 60")
    return pace
