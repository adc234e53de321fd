"""Every page is walked by the browser tests, or it is said why not."""

from collections.abc import Iterator

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from tests.browser.pages import ELSEWHERE, PAGES

pytestmark = pytest.mark.static


def names(resolver: URLResolver) -> Iterator[str]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield pattern.name or f"without a name: {pattern.pattern}"
        elif pattern.namespace is None:
            yield from names(pattern)


def test_every_page_is_walked_or_it_is_said_why_not() -> None:
    assert sorted(set(names(get_resolver())) - {walk.name for walk in PAGES} - set(ELSEWHERE)) == []


def test_what_is_listed_exists() -> None:
    known = set(names(get_resolver()))
    listed = {walk.name for walk in PAGES if not walk.name.startswith("admin:")} | set(ELSEWHERE)
    assert sorted(listed - known) == []
    assert {walk.name for walk in PAGES} & set(ELSEWHERE) == set()
