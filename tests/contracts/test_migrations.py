"""Models and migrations agree."""

from pathlib import Path

import pytest

from tests.contracts.source import manage, output_of

pytestmark = pytest.mark.static


def test_no_migration_is_missing(tmp_path: Path) -> None:
    done = manage(tmp_path, "makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, output_of(done)
