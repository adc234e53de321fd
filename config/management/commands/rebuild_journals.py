from typing import Any

from django.core.management.base import BaseCommand

from projects.intake.rebuilding import rebuild

WIDTH = 30


class Command(BaseCommand):
    help = "Make turns and loop runs again from the journal lines that were read, and say how many were not right."

    def handle(self, *args: Any, **options: Any) -> None:
        done = rebuild(self._show)
        self.stderr.write("")
        wrong = "1 row was" if done.changed == 1 else f"{done.changed:,} rows were"
        self.stdout.write(f"{done.files:,} files looked through; {wrong} not as it should be")

    def _show(self, done: int, total: int) -> None:
        bar = "#" * (WIDTH * done // total)
        self.stderr.write(f"\r[{bar:<{WIDTH}}] {done:,} of {total:,} files", ending="")
        self.stderr.flush()
