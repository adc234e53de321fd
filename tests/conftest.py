"""Fixtures that reach a state through the real verbs, on a home and a workspace of their own."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker) -> Iterator[None]:
    """The test database, which PostgreSQL drops only when no thread's connection is left."""
    yield
    from django.db import connection, connections

    if connection.vendor != "postgresql":
        return
    with django_db_blocker.unblock():
        name = connection.settings_dict["NAME"]
        connections.close_all()
        with connection._nodb_cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


@pytest.fixture(scope="session", autouse=True)
def _shipped() -> None:
    """What migrations ship comes back after a test that commits: Django empties every table behind it."""
    from django.db.models.signals import post_migrate

    def ship(sender, **_) -> None:
        from django.contrib.auth.models import Group

        from kanban.models import Profile
        from kanban.profiles import SHIPPED
        from projects.states import Role

        if sender.name != "kanban":
            return
        for role in Role.values:
            Group.objects.get_or_create(name=role)
        for name, fields in SHIPPED.items():
            Profile.objects.get_or_create(name=name, defaults=fields)

    post_migrate.connect(ship, weak=False)


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path, settings) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    settings.ANDON_WORKSPACE = [root]
    settings.ANDON_JOURNAL_ROOTS = [tmp_path / "journals"]
    return root


@pytest.fixture
def home(tmp_path: Path, settings) -> Path:
    folder = tmp_path / "home"
    (folder / "run").mkdir(parents=True, mode=0o700)
    settings.ANDON_HOME = folder
    return folder


@pytest.fixture
def make_user(db) -> Callable:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import Group

    def make(name: str, role: str = "viewer", password: str = "correct-horse-7"):
        user = get_user_model().objects.create_user(name, password=password)
        if role:
            user.groups.add(Group.objects.get_or_create(name=role)[0])
        return user

    return make


@pytest.fixture
def sign_in(make_user) -> Callable:
    """Return a test client signed in with a role."""
    from django.test import Client

    def make(role: str = "operator", **options) -> Client:
        client = Client(**options)
        client.force_login(make_user(f"{role}-{os.urandom(2).hex()}", role))
        return client

    return make


@pytest.fixture
def make_token(db) -> Callable:
    from django.utils import timezone

    from projects import access
    from projects.events import By
    from projects.states import Role

    def make(role: str = "viewer", **options) -> str:
        options.setdefault("now", timezone.now())
        return access.issue(f"t-{os.urandom(3).hex()}", role=Role(role), by=By("test", "api"), **options)[1]

    return make


@pytest.fixture
def client_of(make_token) -> Callable:
    """Return a test client that sends a token of a role."""
    from django.test import Client

    def make(role: str = "viewer", **options) -> Client:
        return Client(headers={"Authorization": f"Bearer {make_token(role, **options)}"})

    return make


@pytest.fixture
def make_project(workspace: Path) -> Callable:
    from tests.projects.files import write_project

    return lambda name="demo", **options: write_project(workspace / name, **options)


@pytest.fixture
def imported(make_project, db) -> Callable:
    """Write a project's files and import them; returns its row."""
    from django.utils import timezone

    from projects import importer
    from projects.models import Project

    def make(name: str = "demo", **options):
        root = make_project(name, **options)
        importer.rescan(now=timezone.now())
        return Project.objects.get(path=str(root))

    return make


@pytest.fixture(autouse=True)
def _still_relay() -> Iterator[None]:
    """No relay of one test reads the next test's database."""
    yield
    from projects.relay import relay

    relay.stop()


@pytest.fixture(autouse=True)
def _idle_pool() -> Iterator[None]:
    """What one test has left to the pool's threads never writes into the next test's database."""
    yield
    from projects import jobs

    deadline = time.monotonic() + 60
    while jobs._in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not jobs._in_flight


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest first, so that two test processes end together.

    A journey on real processes or in a browser may be late on a busy machine: it has two more tries, which the closing
    lines name. Not the chaos test: whatever it finds once is found.
    """
    items.sort(key=lambda item: "test_scale_out" not in item.nodeid)
    for item in items:
        if item.nodeid.startswith(("tests/journeys/", "tests/browser/")) and "chaos" not in item.nodeid:
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what a test wants said to whoever runs the suite, such as the coverage of the other half."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(text)
