from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from projects import access
from projects.errors import DomainError
from projects.events import By
from projects.models import Project
from projects.states import Role


class Command(BaseCommand):
    help = "Make an API token and print it, and nothing else; it cannot be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="what to call it, for example ci")
        parser.add_argument("--role", choices=Role.values, default=Role.VIEWER, help="what it may do (default: viewer)")
        parser.add_argument("--project", default="", help="slug of the one project it may see (default: all)")
        parser.add_argument("--days", type=int, default=None, help="days until it expires (default: never)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["days"] is not None and not 1 <= options["days"] <= 3650:
            raise CommandError("--days is a number from 1 to 3650.")
        if options["project"] and not Project.objects.filter(slug=options["project"]).exists():
            raise CommandError(f"There is no project {options['project']}.")
        try:
            _, raw = access.issue(
                options["name"],
                role=Role(options["role"]),
                project=options["project"],
                life=timedelta(days=options["days"]) if options["days"] else None,
                by=By("command", "admin"),
                now=timezone.now(),
            )
        except DomainError as refusal:
            raise CommandError(refusal.detail) from None
        self.stdout.write(raw)
