"""What no file of ours may be: long, unfinished, talkative, or named for nothing."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.source import ROOT, files, modules, name_of, places, tree_of

pytestmark = pytest.mark.static

MAX_LINES = 400
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
VAGUE = {"manager", "managers", "helper", "helpers", "util", "utils", "common", "misc", "handler", "handlers"}
MAY_PRINT = re.compile(r"config/management/commands/.*|config/loop/.*|config/demo.*")


def test_no_module_is_longer_than_400_lines() -> None:
    counted = {
        name_of(path): path.read_text(encoding="utf-8").count("\n")
        for path in files(".py", ".js", ".html")
        if "migrations" not in path.parts
    }
    assert {name: lines for name, lines in counted.items() if lines > MAX_LINES} == {}


def test_nothing_is_left_unfinished() -> None:
    found = []
    for path in files(".py", ".js", ".html", ".css", beside=("templates", "tests")):
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            found += places(path, _marks_of_python(text))
        else:
            found += places(
                path, (number for number, line in enumerate(text.splitlines(), 1) if UNFINISHED.search(line))
            )
    assert found == []


def _marks_of_python(text: str) -> Iterator[int]:
    """Yield lines that say they are unfinished; a name such as Status.TODO says nothing."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_prose = token.type in {tokenize.COMMENT, tokenize.STRING}
        if token.string == "NotImplementedError" or (is_prose and UNFINISHED.search(token.string)):
            yield token.start[0]


def test_only_commands_print() -> None:
    found = []
    for path in modules():
        if not MAY_PRINT.fullmatch(name_of(path)):
            calls = (
                node.lineno
                for node in ast.walk(tree_of(path))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            )
            found += places(path, calls)
    assert found == []


def test_names_say_something() -> None:
    vague = [name_of(path) for path in modules() if VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)]
    assert vague == []
