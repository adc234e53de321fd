"""Templates: each is a page or a fragment, all that is named exists, and nothing needs a hole in the CSP."""

import ast
import re
from pathlib import Path

import pytest
from django.template.loader import get_template

from tests.contracts.source import TEMPLATES, files, modules, name_of, places, tree_of

pytestmark = pytest.mark.static

BASE = "base.html"
# Rendered when a template or the static files may be what is broken.
ALONE = {BASE, "500.html"}
COMMENT = re.compile(r"{#.*?#}|{%\s*comment\s*%}.*?{%\s*endcomment\s*%}", re.DOTALL)
EXTENDS = re.compile(r"{%-?\s*extends\s+[\"']([^\"']+)[\"']")
NAMED = re.compile(r"{%\s*(?:include|extends)\s+[\"']([^\"']+)[\"']")
FORBIDDEN = {
    "an inline script": re.compile(r"<script\b[^>]*>\s*[^\s<]", re.IGNORECASE),
    "an inline style sheet": re.compile(r"<style\b", re.IGNORECASE),
    "a style attribute": re.compile(r"[\s\"']style\s*=", re.IGNORECASE),
    "an event attribute": re.compile(r"[\s\"']on[a-z]+\s*=\s*[\"']", re.IGNORECASE),
    "hx-on": re.compile(r"\bhx-on\b", re.IGNORECASE),
    "js:": re.compile(r"[\"'\s](?:js|javascript):", re.IGNORECASE),
    "a third party's origin": re.compile(r"[\"'(=\s](?:[a-z]+:)?//(?!www\.w3\.org/)[a-z0-9]", re.IGNORECASE),
}
# A comment of CSS or JavaScript may name its source; an address in quotes or in url() is fetched.
FETCHED = re.compile(r"""["'`(]\s*(?:(?:https?|wss?):)?//(?!www\.w3\.org/)[a-z0-9]|@import""", re.IGNORECASE)


def test_every_template_is_a_page_or_a_fragment() -> None:
    wrong = []
    for path in sorted(TEMPLATES.rglob("*.html")):
        name = path.relative_to(TEMPLATES).as_posix()
        is_fragment = path.name.startswith("_")
        if name not in ALONE and is_fragment == bool(_root_of(path)):
            wrong.append(name)
    assert wrong == []


def _root_of(path: Path) -> str:
    """Return the template that a page grows from, "" for one that extends nothing or something unknown."""
    found = EXTENDS.search(path.read_text(encoding="utf-8"))
    if found is None:
        return ""
    if found[1] == BASE or found[1].startswith("admin/"):
        return found[1]
    parent = TEMPLATES / found[1]
    return _root_of(parent) if parent.exists() else ""


def test_every_template_compiles_and_finds_what_it_names() -> None:
    wrong = []
    for path in sorted(TEMPLATES.rglob("*.html")):
        text = COMMENT.sub("", path.read_text(encoding="utf-8"))
        for name in {path.relative_to(TEMPLATES).as_posix(), *NAMED.findall(text)}:
            try:
                get_template(name)
            except Exception as error:
                wrong.append(f"{name_of(path)}: {name}: {error}")
    assert wrong == []


def test_every_template_that_code_renders_exists() -> None:
    wrong, named = [], 0
    for path in modules():
        tree = tree_of(path)
        pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in pieces:
                continue
            if re.fullmatch(r"[\w/-]+\.html", node.value):
                named += 1
                if not (TEMPLATES / node.value).exists():
                    wrong.append(f"{name_of(path)}:{node.lineno}: {node.value}")
    assert wrong == []
    assert named > 10


def test_every_refusal_has_its_page() -> None:
    from config.door import STYLED

    assert [status for status in STYLED if not (TEMPLATES / f"{status}.html").exists()] == []


def test_no_template_needs_a_hole_in_the_policy() -> None:
    wrong = []
    for path in files(".html"):
        text = path.read_text(encoding="utf-8")
        for what, pattern in FORBIDDEN.items():
            lines = (text.count("\n", 0, found.start()) + 1 for found in pattern.finditer(text))
            wrong += [f"{place}: {what}" for place in places(path, lines)]
    assert wrong == []


def test_our_styles_and_scripts_fetch_from_nobody_else() -> None:
    wrong = []
    for path in files(".css", ".js"):
        text = path.read_text(encoding="utf-8")
        wrong += places(path, (text.count("\n", 0, found.start()) + 1 for found in FETCHED.finditer(text)))
    assert wrong == []
