import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from config import backup


class Command(BaseCommand):
    help = "Bring back what `backup` saved: database, secret key, node name. Andon must be stopped."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="what manage.py backup wrote")
        parser.add_argument("--yes", action="store_true", help="do not ask, even when there is something to replace")

    def handle(self, *args: Any, **options: Any) -> None:
        def confirm(question: str) -> bool:
            if options["yes"]:
                return True
            if not sys.stdin.isatty():
                raise backup.Refused(f"{question} Nothing was changed: give --yes where nobody can be asked.")
            try:
                return input(f"{question}\nType restore to go on: ").strip() == "restore"
            except (EOFError, KeyboardInterrupt):
                return False

        try:
            done = backup.restore(options["file"], confirm=confirm, say=self._say, now=timezone.now())
        except backup.Refused as refusal:
            raise CommandError(str(refusal)) from None
        except OSError as error:
            raise CommandError(f"Not restored: {error}. Mend that and restore again; nothing is lost.") from None
        for path in done.kept:
            self._say(f"kept {path}, delete it when you no longer need it")
        for name in ("ANDON_SECRET_KEY", "ANDON_NODE"):
            if os.environ.get(name):
                self._say(f"note: {name} is set here and wins over the restored one")
        self._say("note: tokens, passwords and sign-in links are the backup's; what was revoked since is valid again")
        self._say(
            f"restored {options['file']} of {done.meta.created_at}: {done.meta.events:,} events, "
            f"{done.meta.counts.get('projects_project', 0):,} projects. Start Andon: manage.py up"
        )

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
