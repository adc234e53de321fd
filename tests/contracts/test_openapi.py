"""The REST contract: the schema as it was last agreed on."""

import difflib
import json
import os

import pytest
from pydantic import BaseModel

from tests.contracts.source import ROOT, name_of

pytestmark = pytest.mark.static

SNAPSHOT = ROOT / "tests" / "contracts" / "openapi.json"
RENEW = "ANDON_TEST_RENEW=1 uv run pytest tests/contracts/test_openapi.py"
SHOWN_LINES = 80


def rendered() -> str:
    from config.api import api

    return json.dumps(api.get_openapi_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_schema_is_the_one_agreed_on() -> None:
    text = rendered()
    if os.environ.get("ANDON_TEST_RENEW") == "1":
        SNAPSHOT.write_text(text, encoding="utf-8")
    agreed = SNAPSHOT.read_text(encoding="utf-8") if SNAPSHOT.exists() else ""
    if text != agreed:
        lines = difflib.unified_diff(agreed.splitlines(), text.splitlines(), "agreed", "now", n=1, lineterm="")
        shown = "\n".join(list(lines)[:SHOWN_LINES])
        pytest.fail(
            f"The REST schema is not {name_of(SNAPSHOT)}. If clients can live with this, renew it:\n  {RENEW}\n{shown}"
        )


def test_every_operation_says_what_it_is_for() -> None:
    from config.api import api

    silent = [
        f"{method.upper()} {path}"
        for path, methods in api.get_openapi_schema()["paths"].items()
        for method, operation in methods.items()
        if not operation.get("description")
    ]
    assert silent == []


def test_no_two_shapes_share_a_name() -> None:
    """The schema has one place for each name: of two, the later would stand for both."""
    from config.api import api

    api.get_openapi_schema()
    named: dict[str, set[str]] = {}
    waiting = [BaseModel]
    while waiting:
        for shape in waiting.pop().__subclasses__():
            waiting.append(shape)
            if shape.__module__.partition(".")[0] in {"config", "projects", "services", "kanban"}:
                named.setdefault(shape.__name__, set()).add(shape.__module__)
    assert {name: sorted(modules) for name, modules in named.items() if len(modules) > 1} == {}
