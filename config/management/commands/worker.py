from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.parent import follow_parent


class Command(BaseCommand):
    help = "Run this host's worker in the foreground (`up` starts one for you): watches files and runs the jobs."

    def handle(self, *args: Any, **options: Any) -> None:
        from config.worker import Worker
        from projects.errors import Conflict

        follow_parent()
        try:
            Worker().run()
        except Conflict as refusal:
            raise CommandError(refusal.detail, returncode=75) from None
