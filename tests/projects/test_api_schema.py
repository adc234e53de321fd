"""REST against its own schema: whatever is sent, nothing fails and every answer is as documented."""

import pytest
import schemathesis
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from config.api import api
from projects.models import Iteration
from tests.projects.files import write_log

# Requests close their connections, as they do in the real server.
pytestmark = pytest.mark.django_db(transaction=True)
load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)


def nothing_failed(context, response, case) -> None:
    """A 5xx is an answer (no worker, still stopping) where the schema has it; a fault never is."""
    assert response.status_code < 500 or response.json()["error"] != "internal", response.text


PATHS = api.get_openapi_schema()["paths"]


def is_stream(operation):
    """Streams answer without end; tests of their own read as much of them as they need."""
    return "text/event-stream" in operation["responses"].get(200, {}).get("content", {})


def plans():
    """Yield each operation with what is sent to it: sound and unsound values, of the project that is there or any."""
    for path, operations in sorted(PATHS.items()):
        for method, operation in operations.items():
            if is_stream(operation):
                continue
            # Any text may stand in a path, so it alone cannot be unsound.
            has_unsound = "requestBody" in operation or any(p["in"] == "query" for p in operation["parameters"])
            for mode in GenerationMode if has_unsound else [GenerationMode.POSITIVE]:
                for known in [True, False] if "{slug}" in path else [False]:
                    yield pytest.param(
                        path, method, mode, known, id=f"{method} {path} {mode.value}{' known' if known else ''}"
                    )


@pytest.fixture
def schema(imported, make_project, make_token):
    write_log(make_project("demo"), 1, "one\n")
    imported("other")
    assert Iteration.objects.count() == 1
    # Compressed answers would have to be unpacked first.
    headers = {"Authorization": f"Bearer {make_token('operator')}", "Accept-Encoding": "identity"}
    loaded = schemathesis.openapi.from_wsgi("/api/openapi.json", get_wsgi_application(), headers=headers)
    loaded.config.update(headers=headers)
    return loaded


def test_only_streams_are_left_out():
    streams = {path for path, operations in PATHS.items() if is_stream(operations.get("get", {"responses": {}}))}
    assert streams == {
        "/api/ralph/stream",
        "/api/events/stream",
        "/api/ralph/{slug}/iterations/{number}/log-stream",
        "/api/managed-processes/log-stream/{name}",
    }


@pytest.mark.parametrize(("path", "method", "mode", "known"), list(plans()))
def test_every_answer_is_as_documented(schema, path, method, mode, known):
    operation = schema[path][method.upper()]

    @settings(
        max_examples=25,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answer(case):
        if known:
            there = {"slug": "demo", "number": 1}
            case.path_parameters.update(
                {name: there.get(name, case.path_parameters[name]) for name in case.path_parameters}
            )
        case.validate_response(case.call(), checks=[*CHECKED, nothing_failed])

    answer()
