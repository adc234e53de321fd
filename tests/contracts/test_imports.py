"""Imports run one way, and few modules start programs; the contracts stand in pyproject.toml."""

import ast
import re

import pytest

from tests.contracts.source import modules, name_of, output_of, places, run, tree_of

pytestmark = pytest.mark.static

MAY_SPAWN = re.compile(
    r"services/(processes|probes)(\.py|/.*)|projects/git\.py|config/(up|demo_agent)\.py|config/loop/.*"
)
SPAWNS = re.compile(
    r"system|popen|fork|forkpty|posix_spawnp?|exec[lv]p?e?|spawn[lv]p?e?|create_subprocess_(exec|shell)"
)


def test_imports_run_one_way() -> None:
    done = run("lint-imports", "--no-cache", "--no-logo")
    assert done.returncode == 0, output_of(done)


def test_no_program_is_started_past_subprocess() -> None:
    found = []
    for path in modules():
        if not MAY_SPAWN.fullmatch(name_of(path)):
            calls = (
                node.lineno
                for node in ast.walk(tree_of(path))
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in {"os", "asyncio"}
                and SPAWNS.fullmatch(node.attr)
            )
            found += places(path, calls)
    assert found == []


def test_no_shell_reads_a_command() -> None:
    found = []
    for path in modules():
        shells = (
            node.value.lineno
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.keyword)
            and node.arg == "shell"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        )
        found += places(path, shells)
    assert found == []
