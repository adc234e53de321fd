"""REST of the board against its own schema: whatever is sent, nothing fails and every answer is as documented."""

import itertools
from collections import defaultdict
from typing import Any

import pytest

from kanban.states import Status
from tests.conformity import BOARD, check, loaded, plans
from tests.kanban import rows

# Requests close their connections, as they do in the real server.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]
# One test an operation: emptying the database takes longer than asking.
OPERATIONS: dict[tuple[str, str], list[tuple[Any, bool]]] = defaultdict(list)
for plan in plans(lambda path: path.startswith(BOARD), "{task_id}"):
    _path, _method, _mode, _known = plan.values
    OPERATIONS[str(_path), str(_method)].append((_mode, bool(_known)))


@pytest.fixture
def schema(imported, make_token):
    imported("demo")
    return loaded(make_token("operator"))


@pytest.mark.parametrize(("path", "method"), list(OPERATIONS))
def test_every_answer_is_as_documented(schema, path, method):
    there = itertools.cycle([rows.in_status(status).pk for status in Status])
    for mode, known in OPERATIONS[path, method]:
        check(schema, path, method, mode, lambda known=known: {"task_id": next(there)} if known else {}, examples=10)
