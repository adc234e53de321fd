"""The order of a list: what an address may ask for, and that no page repeats or leaves out a row of another."""

from typing import Any, NamedTuple

import pytest
from django.utils import timezone

from projects.models import Iteration, Project
from projects.sorting import By, Order, place

SORTS = {
    "name": By("Name", (lambda row: row.name,)),
    "size": By("Size", (lambda row: row.size, lambda row: row.name), begins_high=True),
}
HOSTILE = ["--size", "-", "size,name", "name; DROP TABLE x", "__class__", "size\n", "SIZE", "pk", "project__path", "?"]


class Thing(NamedTuple):
    name: str
    size: int | None


THINGS = [Thing("b", 2), Thing("a", None), Thing("d", 1), Thing("c", 2)]


def names(asked: str) -> str:
    return "".join(row.name for row in Order(SORTS, asked, default="name").of(THINGS))


def test_rows_in_memory_have_the_order_that_is_asked_for() -> None:
    assert [names(asked) for asked in ("name", "-name", "size", "-size")] == ["abcd", "dcba", "dbca", "cbda"]


@pytest.mark.parametrize("asked", ["", *HOSTILE])
def test_what_no_list_knows_is_the_default(asked) -> None:
    order = Order(SORTS, asked, default="-size")
    assert (order.name, order.is_falling, order.asked) == ("size", True, "")
    assert [row.name for row in order.of(THINGS)] == ["c", "b", "d", "a"]


def test_rows_that_are_alike_stay_as_they_were() -> None:
    sorts = {"size": By("Size", (lambda row: row.size,))}
    for asked in ("size", "-size"):
        found = [row.name for row in Order(sorts, asked, default="size").of(THINGS)]
        assert found.index("b") < found.index("c")


def test_a_click_on_a_head_asks_for_its_first_way_and_then_for_the_other() -> None:
    def said(asked: str) -> dict[str, Any]:
        return {name: tuple(head) for name, head in Order(SORTS, asked, default="name").heads.items()}

    assert said("") == {"name": ("Name", "ascending", "-name"), "size": ("Size", "", "-size")}
    assert said("-size") == {"name": ("Name", "", "name"), "size": ("Size", "descending", "size")}
    assert said("size") == {"name": ("Name", "", "name"), "size": ("Size", "ascending", "-size")}


def test_the_menu_has_every_way_and_the_default_leaves_no_trace() -> None:
    choices = Order(SORTS, "size", default="name").choices
    assert [choice.value for choice in choices] == ["", "-name", "-size", "size"]
    assert [choice.label for choice in choices] == ["Name ↑", "Name ↓", "Size ↓", "Size ↑"]
    assert [choice.value for choice in choices if choice.is_chosen] == ["size"]


@pytest.mark.django_db
class TestRows:
    SORTS = {
        "number": By("No.", ("number",)),
        "started": By("Started", ("started_at",)),
        "story": By("Story", (place("story_key", ("late", "early")),)),
        "size": By("Log", ("size",)),
    }

    @pytest.fixture
    def rows(self, now):
        node = {"node": "n", "path": "/p", "name": "p", "found_at": now}
        project = Project.objects.create(slug="p", **node)
        stories = ("early", "other", "late", "early")
        for number, story in enumerate(stories):
            Iteration.objects.create(
                project=project,
                number=number,
                story_key=story,
                started_at=None if number == 1 else timezone.now(),
                written_at=now,
            )
        return Iteration.objects.all()

    def numbers(self, rows, asked: str) -> list[int]:
        return [row.number for row in Order(self.SORTS, asked, default="number").rows(rows)]

    def test_what_has_no_value_comes_last_both_ways(self, rows):
        assert self.numbers(rows, "started") == [0, 2, 3, 1]
        assert self.numbers(rows, "-started") == [3, 2, 0, 1]

    def test_by_a_place_of_its_own(self, rows):
        assert self.numbers(rows, "story") == [2, 0, 3, 1]
        assert self.numbers(rows, "-story") == [1, 0, 3, 2]

    @pytest.mark.parametrize("asked", ["size", "-size"])
    def test_rows_that_are_alike_have_one_order_over_all_pages(self, rows, asked):
        ordered = Order(self.SORTS, asked, default="number").rows(rows)
        assert [ordered[at].number for at in range(4)] == [0, 1, 2, 3]
