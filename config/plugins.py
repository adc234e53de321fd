"""The second address of the board: clients of other boards know it as a plugin of theirs."""

from collections.abc import Awaitable, Callable
from typing import Any

PLUGIN = "/api/plugins/kanban"
HOME = "/api/kanban"
Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class PluginPrefix:
    """Answer HTTP and WebSocket below PLUGIN as HOME does; whatever is behind this sees one address."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path == PLUGIN or path.startswith(PLUGIN + "/"):
            scope = {**scope, "path": HOME + path[len(PLUGIN) :]}
            # As it was sent, percent signs and all.
            raw = scope.get("raw_path") or b""
            if raw.startswith(PLUGIN.encode()):
                scope["raw_path"] = HOME.encode() + raw[len(PLUGIN) :]
        await self.application(scope, receive, send)
