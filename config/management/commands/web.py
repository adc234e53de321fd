import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from config.parent import follow_parent


class Command(BaseCommand):
    help = "Run one web process in the foreground (`up` starts one for you): pages, REST, WebSocket and SSE."

    def handle(self, *args: Any, **options: Any) -> None:
        from config.server import WebCommand

        follow_parent()
        sys.argv[0] = "andon-web"
        WebCommand().run(
            [
                "--bind",
                settings.ANDON_BIND,
                "--port",
                str(settings.ANDON_PORT),
                # Its access log would print the tokens of WebSocket addresses.
                "--verbosity",
                "0",
                "--no-server-name",
                # The relay's empty frame each 20 s keeps the way open; a ping only finds peers that are gone.
                "--ping-interval",
                "60",
                "--ping-timeout",
                "30",
                "config.asgi:application",
            ]
        )
