"""The suite on PostgreSQL and Redis, without the parts of services and kanban. Runs first, beside the embedded half."""

import os
from pathlib import Path

import pytest

from tests.contracts.scale_out import need_servers, run

# Where every branch is walked: what moves state.
WHOLE = ("projects/states.py", "projects/sweeps.py", "projects/pidfile.py", "projects/lifecycle/")
JUDGES = tuple(
    f"tests/projects/test_{name}"
    for name in (
        *("api.py", "api_journals", "events", "importer", "intake", "jobs", "pidfile", "queries", "registries"),
        *("running", "stops", "sweeps", "undoing", "watcher"),
    )
)
# tests/contracts/test_scale_out_services.py runs these.
ELSEWHERE = (
    "tests/services",
    "tests/journeys/test_services.py",
    "tests/journeys/test_services_chaos.py",
    "tests/journeys/test_loops.py",
    "tests/journeys/test_loop_stops.py",
)
# tests/contracts/test_scale_out_kanban.py runs these.
KANBAN = ("tests/kanban", "tests/journeys/test_kanban.py")


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="this is the half on PostgreSQL already")
def test_the_suite_passes_on_postgresql_and_redis(tmp_path: Path, record_property):
    need_servers()
    words = [f"--ignore={path}" for path in (*ELSEWHERE, *KANBAN)]
    record_property("summary", run("andon_suite", words, WHOLE, JUDGES, tmp_path, least=1200))
