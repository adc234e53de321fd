"""Tasks in every state through the real verbs (rows.py); nobody is told and no thread looks, unless a test says so."""

from collections.abc import Callable

import pytest

from kanban import dispatch, gate, lifecycle
from services import orders
from tests.kanban import rows


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> rows.Heard:
    """What the workers would have been told: played, so that no job of one test runs in the next."""
    found = rows.Heard()

    def freed() -> None:
        found.freed += 1

    monkeypatch.setattr(orders, "tell", found.told.extend)
    monkeypatch.setattr(dispatch, "wake", freed)
    monkeypatch.setattr(gate, "wake", found.left.append)
    # The lists themselves are held by the modules that call them.
    monkeypatch.setattr(lifecycle.moves, "on_free", [freed])
    monkeypatch.setattr(lifecycle.ending, "on_left", [found.left.append])
    return found


@pytest.fixture
def make_task(db: None) -> Callable:
    """Create a task: `make_task(title, **fields)`."""
    return rows.task


@pytest.fixture
def make_task_in(db: None) -> Callable:
    """Return a task in a status: `make_task_in("blocked", **fields)`."""
    return rows.in_status


@pytest.fixture
def make_run(db: None) -> Callable:
    """Return a run whose worker is at work: `make_run(task)`."""
    return rows.started


@pytest.fixture
def ask(client_of: Callable) -> Callable:
    """Return a client of REST with a token of a role: `ask("operator", project="demo")`."""
    from tests.kanban.asking import Asker

    return lambda role="operator", **options: Asker(client_of(role, **options))
