"""A plugin of pytest under coverage: only the tests that a place is judged by are traced.

Tracing makes all code half as slow again, also what is not measured; tests of pages would pay for nothing.
"""

import os
from collections.abc import Iterator

import pytest
from coverage import Coverage

TRACED = "ANDON_TEST_TRACED"


class Tracing:
    """Stops measuring once all is imported, which walks every definition, and goes on for the tests that judge."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage

    def pytest_collection_finish(self) -> None:
        self.coverage.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        is_traced = item.nodeid.startswith(tuple(os.environ[TRACED].split(":")))
        if is_traced:
            self.coverage.start()
        try:
            return (yield)
        finally:
            if is_traced:
                self.coverage.stop()


def pytest_configure(config: pytest.Config) -> None:
    coverage = Coverage.current()
    assert coverage is not None, "coverage does not run"
    config.pluginmanager.register(Tracing(coverage))
