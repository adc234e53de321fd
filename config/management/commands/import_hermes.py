import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from kanban import hermes
from kanban.models import Board
from projects.events import SWEEP

BAR = 30


class Command(BaseCommand):
    help = (
        "Bring tasks, links, comments and events of a Hermes kanban.db in. The file is only read, also while its own "
        "dispatcher runs. Can be repeated: what is here already stays as it is. Without --apply nothing is changed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="PATH", type=Path, help="the board, mostly ~/.hermes/kanban.db")
        parser.add_argument("--apply", action="store_true", help="do it; without this it is only said what would be")

    def handle(self, *args: Any, **options: Any) -> None:
        apply = options["apply"]
        try:
            with hermes.opened(options["file"].expanduser(), settings.ANDON_HOME) as board:
                done = hermes.bring(board, apply=apply, by=SWEEP, now=timezone.now(), progress=self._progress)
        except hermes.Unreadable as why:
            raise CommandError(f"{why} What was brought in before stays; run it again when that is mended.") from None
        except OSError as error:
            raise CommandError(f"Not brought in: {error}. Mend that and run it again.") from None
        for line in done.lines:
            self.stdout.write(f"note: {line}")
        if done.unsaid:
            self.stdout.write(f"note: and {done.unsaid} more")
        said = f"{done.tasks} tasks, {done.comments} comments, {done.links} links and {done.events} events"
        if apply:
            self.stdout.write(f"brought in {said}; {done.known} tasks were here already")
        else:
            self.stdout.write(f"would bring in {said}; {done.known} tasks are here already")
            self.stdout.write("nothing was changed: give --apply to do it")
        if done.ready and settings.ANDON_DISPATCH and not Board.objects.exclude(paused_at=None).exists():
            word = "are" if apply else "would be"
            self.stdout.write(
                f"note: {done.ready} of them {word} ready, and the dispatcher starts those that are assigned to one of "
                "its profiles. Stop the other board's dispatcher first, or pause this one."
            )

    def _progress(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        part = min(1.0, done / total) if total else 1.0
        filled = round(part * BAR)
        self.stderr.write(f"\r{what:8} [{'#' * filled}{' ' * (BAR - filled)}] {done}/{total} ", ending="")
        if done >= total:
            self.stderr.write("")
