"""The board's second address, through the ASGI application itself."""

import io
import json
import tempfile
from collections.abc import Callable

import pytest
from channels.testing import HttpCommunicator

from config.asgi import application
from config.plugins import PluginPrefix
from tests.projects.aside import running

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _bodies_in_memory(monkeypatch) -> None:
    """Django leaves the file with a request's body to the garbage collector, which complains."""
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda **_: io.BytesIO())


async def answer_of(method: str, path: str, token: str = "", body: bytes = b"") -> tuple[int, dict]:
    lines = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if token:
        lines.append((b"authorization", f"Bearer {token}".encode()))
    asked = HttpCommunicator(application, method, path, body=body, headers=lines)
    answer = await asked.get_response(timeout=10)
    return answer["status"], json.loads(answer["body"])


def test_the_board_answers_under_both_addresses(make_token: Callable):
    token = make_token("operator")

    async def test() -> None:
        status, made = await answer_of("POST", "/api/plugins/kanban/tasks", token, b'{"title": "One"}')
        assert status == 200, made
        task = made["task"]["id"]
        for prefix in ("/api/kanban", "/api/plugins/kanban"):
            status, found = await answer_of("GET", f"{prefix}/tasks/{task}?events_before=1", token)
            assert (status, found["task"]["title"], found["events"]) == (200, "One", [])
            assert (await answer_of("GET", f"{prefix}/board"))[0] == 401

    running(test)


@pytest.mark.parametrize(
    "path",
    [
        "/api/plugins/kanbanx/board",
        "/api/plugins/kanba",
        "/api/plugins",
        "/api/plugins/",
    ],
)
def test_nothing_else_is_rewritten(make_token: Callable, path: str):
    token = make_token("operator")

    async def test() -> None:
        assert (await answer_of("GET", path, token))[0] == 404

    running(test)


@pytest.mark.parametrize(
    ("path", "raw", "seen", "seen_raw"),
    [
        ("/api/plugins/kanban", b"/api/plugins/kanban", "/api/kanban", b"/api/kanban"),
        ("/api/plugins/kanban/é", b"/api/plugins/kanban/%C3%A9", "/api/kanban/é", b"/api/kanban/%C3%A9"),
        ("/api/plugins/kanban/x", b"/api/plugins/%6banban/x", "/api/kanban/x", b"/api/plugins/%6banban/x"),
        ("/api/plugins/kanban2", b"/api/plugins/kanban2", "/api/plugins/kanban2", b"/api/plugins/kanban2"),
    ],
)
def test_the_scope_is_copied_with_another_path(path: str, raw: bytes, seen: str, seen_raw: bytes):
    got = []

    async def inner(scope, receive, send) -> None:
        got.append(scope)

    scope = {"type": "http", "path": path, "raw_path": raw, "query_string": b"a=1"}

    async def test() -> None:
        await PluginPrefix(inner)(scope, None, None)

    running(test)
    assert (got[0]["path"], got[0]["raw_path"], got[0]["query_string"]) == (seen, seen_raw, b"a=1")
    assert scope["path"] == path
