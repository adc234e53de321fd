"""Django's own check of a deployment finds nothing."""

from pathlib import Path

import pytest

from tests.contracts.source import manage, output_of

pytestmark = pytest.mark.static


def test_a_deployment_is_clean(tmp_path: Path) -> None:
    reachable = {"ANDON_BIND": "0.0.0.0", "ANDON_ALLOWED_HOSTS": "andon.example.org"}
    done = manage(tmp_path, "check", "--deploy", "--fail-level", "WARNING", "--database", "default", **reachable)
    assert done.returncode == 0, output_of(done)
