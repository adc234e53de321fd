"""State machines are data: every table is well formed and walked, and `_move` alone writes `status`."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models import TextChoices

from tests.contracts.source import APPS, ROOT, modules, name_of, places, tree_of

pytestmark = pytest.mark.static

WRITES = {"update", "aupdate", "update_or_create", "bulk_update", "abulk_update"}


def tables() -> dict[str, dict[str, Any]]:
    """Return every table `…MOVES` of the apps' states.py by its dotted name."""
    found = {}
    for app in APPS:
        if (ROOT / app / "states.py").exists() or (ROOT / app / "states").is_dir():
            states = importlib.import_module(f"{app}.states")
            found |= {f"{app}.states.{name}": value for name, value in vars(states).items() if name.endswith("MOVES")}
    return found


def test_tables_lead_from_known_states_to_known_states() -> None:
    wrong = []
    assert tables()
    for name, table in tables().items():
        kinds = {type(state) for sources, target in table.values() for state in (*sources, target)}
        is_one_machine = len(kinds) == 1 and issubclass(*kinds, TextChoices)
        if not is_one_machine or not all(isinstance(sources, frozenset) and sources for sources, _ in table.values()):
            wrong.append(name)
    assert wrong == []


def test_every_table_is_walked_by_a_test() -> None:
    """A test that walks a table has to import it."""
    imported = {
        f"{node.module}.{alias.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(set(tables()) - imported) == []


def test_only_move_writes_status() -> None:
    found = [place for path in modules() for place in places(path, _writes(tree_of(path), path))]
    assert found == []


def _writes(tree: ast.AST, path: Path, within: str = "") -> Iterator[int]:
    """Yield the lines that write a row's status outside of lifecycle's `_move`; a view's own field is no row.

    Where verbs of one machine are spread over modules, it is `move` in lifecycle/moves.py.
    """
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else within
        is_mover = (name == "_move" and "/lifecycle" in name_of(path)) or (
            name == "move" and name_of(path).endswith("/lifecycle/moves.py")
        )
        if is_mover:
            continue
        if (_writes_by_call(node) or _writes_by_assignment(node)) and not (name == "__init__" and _is_own(node)):
            yield node.lineno  # type: ignore[attr-defined]
        yield from _writes(node, path, name)


def _writes_by_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name) and node.func.id == "setattr":
        return any(isinstance(part, ast.Constant) and part.value == "status" for part in node.args)
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in WRITES:
        return False
    if any(keyword.arg == "status" for keyword in node.keywords):
        return True
    named = [part for argument in (*node.args, *(k.value for k in node.keywords)) for part in _names_in(argument)]
    return node.func.attr != "update" and "status" in named


def _names_in(node: ast.expr) -> list[Any]:
    """Return the constants of a list of field names, or the keys of a dict of defaults."""
    parts = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return [part.value for part in parts if isinstance(part, ast.Constant)]


def _writes_by_assignment(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and any(
        isinstance(target, ast.Attribute) and target.attr == "status" for target in targets
    )


def _is_own(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return all(
        isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
        for target in targets
    )
