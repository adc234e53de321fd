"""Whoever asks the board over REST, and the one shape of its refusals."""

import json
from typing import Any

from django.test import Client
from django.utils import timezone

from kanban import workers
from kanban.models import Run
from tests.kanban import rows
from tests.services.rows import refused

HOME = "/api/kanban"
__all__ = ["Asker", "refused", "speaking"]


class Asker:
    """A client that sends JSON below the board's address."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(HOME + path, headers=headers)

    def post(self, path: str, body: Any = None) -> Any:
        return self._send(self.client.post, path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self._send(self.client.patch, path, body)

    def delete(self, path: str) -> Any:
        return self.client.delete(HOME + path)

    def task(self, title: str = "One", **fields: Any) -> dict[str, Any]:
        """Create a task over REST."""
        answer = self.post("/tasks", {"title": title, **fields})
        assert answer.status_code == 200, answer.content
        made: dict[str, Any] = answer.json()["task"]
        return made

    @staticmethod
    def _send(method: Any, path: str, body: Any) -> Any:
        raw = "" if body is None else json.dumps(body)
        return method(HOME + path, data=raw, content_type="application/json")


def speaking(run: Run) -> Asker:
    """Return a client that has the token of a run."""
    token = workers.issue_token(run, run.task, by=rows.AGENT, now=timezone.now())
    return Asker(Client(headers={"Authorization": f"Bearer {token}"}))
