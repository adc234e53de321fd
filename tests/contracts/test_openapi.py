"""The REST contract: the schema as it was last agreed on."""

import difflib
import json
import os

import pytest

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
