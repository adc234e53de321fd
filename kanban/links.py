"""The graph of tasks, read: whose parents are open, and whether a link would close a circle."""

from collections.abc import Collection

from django.db import connection
from django.db.models import Exists, OuterRef

from kanban.models import Board, Link
from kanban.states import CLOSED

# True for a task of which a parent is neither done nor archived.
HAS_OPEN_PARENT = Exists(
    Link.objects.filter(child=OuterRef("pk")).exclude(parent__status__in=sorted(CLOSED)).values("pk")
)


def parents(task_id: str) -> list[str]:
    """Return the ids of a task's parents, by link."""
    return list(Link.objects.filter(child=task_id).values_list("parent_id", flat=True))


def children(task_id: str) -> list[str]:
    """Return the ids of a task's children, by link."""
    return list(Link.objects.filter(parent=task_id).values_list("child_id", flat=True))


def open_parents(task_id: str) -> list[str]:
    """Return the ids of a task's parents that are neither done nor archived."""
    rows = Link.objects.filter(child=task_id).exclude(parent__status__in=sorted(CLOSED))
    return list(rows.values_list("parent_id", flat=True))


def lock_graph() -> None:
    """Have those who add links come one after another, until this transaction ends: two at once may close a circle."""
    Board.objects.get_or_create(id=1)
    Board.objects.select_for_update().get(id=1)


def is_ancestor(task_id: str, of: str) -> bool:
    """Say whether following links upward from `of` leads to a task; one recursive query."""
    with connection.cursor() as cursor:
        cursor.execute(_ANCESTORS, [of, task_id])
        return cursor.fetchone() is not None


def dependants(task_ids: Collection[str]) -> int:
    """Return how many open tasks wait for these, directly or through others."""
    if not task_ids:
        return 0
    marks = ", ".join(["%s"] * len(task_ids))
    with connection.cursor() as cursor:
        cursor.execute(_DEPENDANTS.format(marks=marks), [*task_ids, *sorted(CLOSED)])
        row = cursor.fetchone()
    return int(row[0])


_LINKS = Link._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_TASKS = Link._meta.get_field("parent").related_model._meta.db_table  # noqa: SLF001
_ANCESTORS = (
    # PostgreSQL wants one type on both sides.
    "WITH RECURSIVE above(id) AS (SELECT CAST(%s AS text) UNION "  # noqa: S608 (constants only)
    f"SELECT CAST(links.parent_id AS text) FROM {_LINKS} links JOIN above ON links.child_id = above.id) "
    "SELECT 1 FROM above WHERE id = %s LIMIT 1"
)
_DEPENDANTS = (
    f"WITH RECURSIVE below(id) AS (SELECT child_id FROM {_LINKS} WHERE parent_id IN ({{marks}}) UNION "  # noqa: S608
    f"SELECT links.child_id FROM {_LINKS} links JOIN below ON links.parent_id = below.id) "
    f"SELECT count(*) FROM below JOIN {_TASKS} tasks ON tasks.id = below.id WHERE tasks.status NOT IN (%s, %s)"
)
