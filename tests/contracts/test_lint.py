"""Lint and format."""

import pytest

from tests.contracts.source import output_of, run

pytestmark = pytest.mark.static


@pytest.mark.parametrize("command", [("check", "--no-fix"), ("format", "--check", "--diff")], ids=["check", "format"])
def test_ruff_is_content(command: tuple[str, ...]) -> None:
    done = run("ruff", *command, ".")
    assert done.returncode == 0, output_of(done)
