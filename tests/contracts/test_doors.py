"""Nobody is let in by default: every operation of REST and every URL, tried by a stranger."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern
from django.utils.regex_helper import normalize

SAFE = {"get", "head", "options"}
# What anybody may open; /static/ is answered before Django's URLs.
OPEN = {"/login/", "/login/link/x/", "/healthz", "/readyz", "/favicon.ico"}
# Writing operations of REST that a viewer may run, each with its reason.
VIEWERS_MAY: set[str] = set()
FILLED = {"int": "1", "str": "x", "slug": "x", "path": "x/y", "uuid": "0" * 8 + "-0000-0000-0000-" + "0" * 12}


def operations() -> Iterator[tuple[str, str, str]]:
    """Yield (method, path as written, path filled in) of the whole schema."""
    from config.api import api

    for path, methods in api.get_openapi_schema()["paths"].items():
        for method, operation in methods.items():
            filled = path
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    value = "1" if parameter["schema"].get("type") in {"integer", "number"} else "x"
                    filled = filled.replace(f"{{{parameter['name']}}}", value)
            yield method, path, filled


def routes(resolver: URLResolver | None = None, before: str = "/") -> Iterator[str]:
    """Yield one path for each URL pattern, its converters filled in."""
    for pattern in (resolver or get_resolver()).url_patterns:
        here = before + _filled(pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern, here)
        else:
            yield here


def _filled(pattern: URLPattern | URLResolver) -> str:
    if isinstance(pattern.pattern, RegexPattern):
        form, names = normalize(str(pattern.pattern))[0]
        return form % dict.fromkeys(names, "x")
    return re.sub(r"<(?:(\w+):)?\w+>", lambda found: FILLED.get(found[1] or "str", "x"), str(pattern.pattern))


def _is_refusal(answer: Any, code: str) -> bool:
    return answer.headers["Content-Type"].startswith("application/json") and answer.json().get("error") == code


@pytest.mark.static
def test_every_operation_has_a_door_of_its_own() -> None:
    from config.api import api

    operations_ = [
        operation
        for router in api._get_bound_routers()
        for view in router.path_operations.values()
        for operation in view.operations
    ]
    assert operations_
    assert [operation.view_func.__name__ for operation in operations_ if not operation.auth_callbacks] == []


def test_a_stranger_hears_401_from_every_operation(db) -> None:
    client = Client(enforce_csrf_checks=True)
    tried, wrong = 0, []
    for method, path, filled in operations():
        answer = getattr(client, method)(filled)
        tried += 1
        if answer.status_code != 401 or not _is_refusal(answer, "unauthenticated"):
            wrong.append(f"{method.upper()} {path}: {answer.status_code}")
    assert tried
    assert wrong == []


def test_a_viewer_may_run_no_operation_that_changes_something(client_of: Callable[..., Client]) -> None:
    client = client_of("viewer")
    wrong = []
    for method, path, filled in operations():
        if method in SAFE or f"{method.upper()} {path}" in VIEWERS_MAY:
            continue
        answer = getattr(client, method)(filled, data="{}", content_type="application/json")
        if answer.status_code != 403 or not _is_refusal(answer, "forbidden"):
            wrong.append(f"{method.upper()} {path}: {answer.status_code}")
    assert wrong == []


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_stranger_finds_every_url_closed(db, method: str) -> None:
    client = Client()
    found, wrong = set(), []
    for path in routes():
        found.add(path)
        if path in OPEN:
            continue
        answer = getattr(client, method)(path)
        signs_in = answer.status_code == 302 and answer.headers["Location"].startswith("/login/?next=")
        if answer.status_code != 401 and not signs_in:
            wrong.append(f"{path}: {answer.status_code}")
    assert wrong == []
    assert found >= OPEN
    assert len(found) > 50


def test_what_is_open_is_open(db) -> None:
    client = Client()
    answers = {}
    for path in OPEN:
        answer = client.get(path)
        answers[path] = answer.status_code
        # Reads a streamed file to its end, which closes it.
        answer.getvalue()
    readiness = answers.pop("/readyz")
    assert answers == {"/login/": 200, "/login/link/x/": 404, "/healthz": 200, "/favicon.ico": 200}
    assert readiness in {200, 503}


def test_an_unknown_address_is_closed_too(db) -> None:
    client = Client()
    assert client.get("/no/such/page/").status_code == 302
    assert _is_refusal(client.get("/api/no-such-call"), "unauthenticated")
