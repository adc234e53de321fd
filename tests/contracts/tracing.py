"""A plugin of pytest under coverage: the tests that a place is judged by run first, and nothing is traced after them.

Tracing makes all code half as slow again, also what is not measured; tests of pages would pay for nothing.
"""

import os

import pytest
from coverage import Coverage

TRACED = "ANDON_TEST_TRACED"


class Tracing:
    """Ends a measurement behind the last test whose id begins as one of `judges`."""

    def __init__(self, coverage: Coverage, judges: tuple[str, ...]) -> None:
        self.coverage, self.judges, self.left = coverage, judges, 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: not item.nodeid.startswith(self.judges))
        self.left = sum(item.nodeid.startswith(self.judges) for item in items)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid.startswith(self.judges):
            self.left -= 1
            if not self.left:
                self.coverage.stop()


def pytest_configure(config: pytest.Config) -> None:
    coverage = Coverage.current()
    assert coverage is not None, "coverage does not run"
    config.pluginmanager.register(Tracing(coverage, tuple(os.environ[TRACED].split(":"))))
