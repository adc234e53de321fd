"""Operations of REST against their own schema: what is sent to them, and what no answer may be."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from config.api import api

load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)
PATHS = api.get_openapi_schema()["paths"]
BOARD = "/api/kanban/"


def nothing_failed(context: Any, response: Any, case: Any) -> None:
    """A 5xx is an answer (no worker, still stopping) where the schema has it; a fault never is."""
    assert response.status_code < 500 or response.json()["error"] != "internal", response.text


def is_stream(operation: dict[str, Any]) -> bool:
    """Streams answer without end; tests of their own read as much of them as they need."""
    return "text/event-stream" in operation["responses"].get(200, {}).get("content", {})


def plans(is_mine: Callable[[str], bool], parameter: str) -> Iterator[Any]:
    """Yield each operation with what is sent to it: sound and unsound values, with a known `parameter` or any."""
    for path, operations in sorted(PATHS.items()):
        for method, operation in operations.items():
            if not is_mine(path) or is_stream(operation):
                continue
            # Any text may stand in a path, so it alone cannot be unsound.
            has_unsound = "requestBody" in operation or any(p["in"] == "query" for p in operation["parameters"])
            for mode in GenerationMode if has_unsound else [GenerationMode.POSITIVE]:
                for known in [True, False] if parameter in path else [False]:
                    yield pytest.param(
                        path, method, mode, known, id=f"{method} {path} {mode.value}{' known' if known else ''}"
                    )


def loaded(token: str) -> Any:
    """Return the schema as it is served, whose cases are sent with a token."""
    # Compressed answers would have to be unpacked first.
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
    found = schemathesis.openapi.from_wsgi("/api/openapi.json", get_wsgi_application(), headers=headers)
    found.config.update(headers=headers)
    return found


def check(
    schema: Any, path: str, method: str, mode: GenerationMode, known: Callable[[], dict[str, Any]], *, examples: int
) -> None:
    """Send an operation what hypothesis makes up; `known` gives the path parameters that are to be there."""
    operation = schema[path][method.upper()]

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answer(case: Any) -> None:
        there = known()
        case.path_parameters.update({name: there.get(name, value) for name, value in case.path_parameters.items()})
        case.validate_response(case.call(), checks=[*CHECKED, nothing_failed])

    answer()
