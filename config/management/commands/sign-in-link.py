from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from config.up import public_url
from projects import access
from projects.events import By


class Command(BaseCommand):
    help = "Print a one-time sign-in link for a user, good for a day."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user", help="the user's name, for example admin")

    def handle(self, *args: Any, **options: Any) -> None:
        user = get_user_model().objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            names = ", ".join(get_user_model().objects.order_by("username").values_list("username", flat=True)[:20])
            raise CommandError(
                f"There is no active user {options['user']}. There are: {names or 'none; run up first'}."
            )
        path = access.invite(user, by=By("command", "admin"), now=timezone.now())
        self.stdout.write(public_url(settings.ANDON) + path)
