"""A node whose machine is a verified fake, with the real supervisor on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from projects import undoing
from projects.models import Project
from services import loops, orders, starting, supervisor
from services.lifecycle import on_end, on_start
from services.models import ManagedProcess
from tests.services.repository import commit, flip, git
from tests.services.rows import play_worker, tick
from tests.services.world import World, make_project


@pytest.fixture
def demo_project(workspace: Path, db: None) -> Project:
    return make_project(workspace)


@pytest.fixture
def world(demo_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # What the apps above hang in, which belongs to no fake machine.
    hooks: list[dict[str, Any]] = [on_start, on_end, starting.prepare]
    before = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    made = World(monkeypatch, demo_project, tmp_path / "logs")
    yield made
    for each, kept in zip(hooks, before, strict=True):
        each.clear()
        each.update(kept)
    supervisor.install(None)
    assert made.kernel.strangers_signalled() == []


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def root(demo: Project) -> Path:
    """The ordinary state: two stories done, code committed, bookkeeping edited after the last commit."""
    root = Path(demo.path)
    git(root, "init", "-q", "-b", "main")
    commit(root, "A start", a__py="one = 1\n")
    commit(root, "feat: [US-002] Story 2", a__py="one = 1\ntwo = 2\n", b__py="b = 2\n")
    flip(root, "US-002")
    tick()
    return root


@pytest.fixture
def commanded(demo: Project) -> Project:
    tick()
    demo.loop_command = "ralph {max_iterations}"
    demo.save()
    return demo


@pytest.fixture
def worker(monkeypatch, home) -> list[ManagedProcess]:
    """A worker that starts and stops what it is told of, and carries out rollbacks, at once."""
    told = play_worker(monkeypatch)

    def send(job: Any, node: str, pk: int) -> None:
        if job is loops.carry_out:
            undoing.act(pk)

    monkeypatch.setattr(orders, "send", send)
    # No thread imports into the test's transaction.
    monkeypatch.setattr(undoing.jobs, "submit", lambda *words: None)
    monkeypatch.setattr(loops, "BEYOND_GRACE_S", 0.1)
    return told
