"""The services' part of the suite on PostgreSQL and Redis. Runs first, beside the embedded half."""

import os
from pathlib import Path

import pytest

from tests.contracts.scale_out import need_servers, run
from tests.contracts.test_scale_out import ELSEWHERE

# Where every branch is walked: what moves state.
WHOLE = (
    "services/states.py",
    "services/sweeps.py",
    "services/supervisor.py",
    "services/strangers.py",
    "services/loops.py",
    "services/commands.py",
    "services/signals.py",
    "services/lifecycle/",
    "services/specs/",
)
JUDGES = tuple(
    f"tests/services/test_{name}"
    for name in (
        *(
            "acceptance",
            "health",
            "kinship",
            "lifecycle",
            "loops",
            "orders",
            "specs",
            "starting",
            "states",
            "strangers",
        ),
        *("ports", "probes", "supervisor", "sweeps", "api_loops", "api_verbs", "api_declare"),
    )
)


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="this is the half on PostgreSQL already")
def test_the_services_pass_on_postgresql_and_redis(tmp_path: Path, record_property):
    need_servers()
    record_property("summary", run("andon_services", list(ELSEWHERE), WHOLE, JUDGES, tmp_path, least=1500))
