"""The kanban's part of the suite on PostgreSQL and Redis. Runs first, beside the embedded half."""

import os
from pathlib import Path

import pytest

from tests.contracts.scale_out import need_servers, run
from tests.contracts.test_scale_out import KANBAN

# Where every branch is walked: what moves state.
WHOLE = (
    "kanban/states.py",
    "kanban/links.py",
    "kanban/dispatch.py",
    "kanban/sweeps.py",
    "kanban/gate.py",
    "kanban/lifecycle/",
)
JUDGES = tuple(
    f"tests/kanban/test_{name}"
    for name in (
        "dispatch",
        "gate",
        "lifecycle",
        "links",
        "machine",
        "states",
        "sweeps",
        "workers",
        "api_tasks",
        "api_verbs",
        "notices",
    )
)


@pytest.mark.skipif("DATABASE_URL" in os.environ, reason="this is the half on PostgreSQL already")
def test_the_kanban_passes_on_postgresql_and_redis(tmp_path: Path, record_property):
    need_servers()
    record_property("summary", run("andon_kanban", list(KANBAN), WHOLE, JUDGES, tmp_path, least=600))
