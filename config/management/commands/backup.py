from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from config import backup


class Command(BaseCommand):
    help = "Save the database, the secret key and the node name in one file, while Andon runs. Keep it as a secret."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="what to write, for example andon-backup.tar.gz")
        parser.add_argument("--force", action="store_true", help="replace FILE when it exists")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            saved = backup.backup(options["file"], force=options["force"], say=self._say, now=timezone.now())
        except backup.Refused as refusal:
            raise CommandError(str(refusal)) from None
        except OSError as error:
            raise CommandError(f"{options['file']} was not written: {error}.") from None
        self._say(f"saved {saved.path}: {saved.size:,} bytes, {saved.events:,} events")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
