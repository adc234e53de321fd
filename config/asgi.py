"""HTTP, WebSocket and SSE in one application."""

import os
import warnings

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup(set_prefix=False)

from channels.auth import AuthMiddlewareStack  # noqa: E402 (needs the apps above)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path, re_path  # noqa: E402
from django.utils import timezone  # noqa: E402

from config.answering import Handler  # noqa: E402
from config.plugins import PluginPrefix  # noqa: E402
from kanban.consumers import BoardConsumer  # noqa: E402
from projects.consumers import EventsConsumer, RefusingConsumer  # noqa: E402
from projects.relay import relay  # noqa: E402
from services import sweeps  # noqa: E402

# Static files are small and come from the page cache; a thread for each would cost more than it saves.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")
relay.checks = (lambda: sweeps.find_silent(now=timezone.now()),)

application = PluginPrefix(
    ProtocolTypeRouter(
        {
            "http": Handler(),
            "websocket": AuthMiddlewareStack(
                URLRouter(
                    [
                        path("ws/events", EventsConsumer.as_asgi()),
                        path("api/kanban/events", BoardConsumer.as_asgi()),
                        re_path("", RefusingConsumer.as_asgi()),
                    ]
                )
            ),
        }
    )
)
