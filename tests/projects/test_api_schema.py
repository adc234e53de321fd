"""REST against its own schema: whatever is sent, nothing fails and every answer is as documented."""

import pytest

from projects.models import Iteration
from tests.conformity import BOARD, PATHS, check, is_stream, loaded, plans
from tests.projects.files import write_log

# Requests close their connections, as they do in the real server.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]


@pytest.fixture
def schema(imported, make_project, make_token):
    write_log(make_project("demo"), 1, "one\n")
    imported("other")
    assert Iteration.objects.count() == 1
    return loaded(make_token("operator"))


def test_only_streams_are_left_out():
    streams = {path for path, operations in PATHS.items() if is_stream(operations.get("get", {"responses": {}}))}
    assert streams == {
        "/api/ralph/stream",
        "/api/events/stream",
        "/api/ralph/{slug}/iterations/{number}/log-stream",
        "/api/managed-processes/log-stream/{name}",
    }


@pytest.mark.parametrize(
    ("path", "method", "mode", "known"), list(plans(lambda path: not path.startswith(BOARD), "{slug}"))
)
def test_every_answer_is_as_documented(schema, path, method, mode, known):
    there = {"slug": "demo", "number": 1} if known else {}
    check(schema, path, method, mode, lambda: there, examples=10)
