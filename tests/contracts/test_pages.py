"""Every page is walked by the browser tests, or it is said why not."""

import ast
from collections.abc import Iterator

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from tests.browser.pages import ELSEWHERE, PAGES
from tests.contracts.source import TEMPLATES, modules, tree_of

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


def test_every_fragment_holds_the_element_that_is_asked_for() -> None:
    """live.js looks for the element's id in what it fetched: without it, that part of the page stands still."""
    wrong, seen = [], 0
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                pair = [each.value for each in (key, value) if isinstance(each, ast.Constant)]
                if len(pair) == 2 and isinstance(pair[1], str) and pair[1].rpartition("/")[2].startswith("_"):
                    seen += 1
                    if pair[1].endswith(".html") and f'id="{pair[0]}"' not in (TEMPLATES / pair[1]).read_text():
                        wrong.append(f"{path.name}: {pair}")
    assert wrong == []
    assert seen > 15
