"""Types: mypy with django-stubs as pyproject.toml sets it, strict everywhere, pure leaves and all."""

import tomllib

import pytest

from tests.contracts.source import APPS, ROOT, output_of, run

pytestmark = pytest.mark.static


def test_mypy_is_content() -> None:
    done = run("mypy", *APPS, DJANGO_SETTINGS_MODULE="config.settings")
    assert done.returncode == 0, output_of(done)


def test_it_is_strict() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"] is True
    assert {name for override in mypy["overrides"] for name in override} == {"module", "ignore_missing_imports"}
