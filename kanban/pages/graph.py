"""A small picture of what a task waits for and what waits for it: three columns of boxes, laid out by the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from kanban.models import Task

WIDTH, HEIGHT = 176, 40
GAP_X, GAP_Y = 44, 10
MOST = 8
LONGEST = 20


@dataclass(frozen=True, slots=True)
class Box:
    """One task; `x`, `y` its upper left corner; `more` instead of a task: how many are not drawn."""

    x: int
    y: int
    task: Task | None
    title: str
    more: int = 0

    @property
    def middle(self) -> int:
        return self.y + HEIGHT // 2


@dataclass(frozen=True, slots=True)
class Graph:
    """Boxes and the lines between them as SVG paths, in a picture of `width` by `height`."""

    boxes: list[Box]
    lines: list[str]
    width: int
    height: int


def draw(task: Task, parents: Sequence[Task], children: Sequence[Task]) -> Graph | None:
    """Lay out a task between its parents and its children; None when it has neither."""
    if not parents and not children:
        return None
    rows = max(_height(parents), _height(children), 1)
    height = rows * (HEIGHT + GAP_Y) - GAP_Y
    left = 0
    boxes: list[Box] = []
    up = _stack(parents, left, height)
    if up:
        left += WIDTH + GAP_X
    middle = Box(left, (height - HEIGHT) // 2, task, _short(task))
    down = _stack(children, left + WIDTH + GAP_X, height)
    lines = [_line(box, middle) for box in up] + [_line(middle, box) for box in down]
    boxes = [*up, middle, *down]
    return Graph(boxes, lines, max(box.x for box in boxes) + WIDTH, height)


def _height(tasks: Sequence[Task]) -> int:
    return min(len(tasks), MOST) + (len(tasks) > MOST)


def _stack(tasks: Sequence[Task], x: int, height: int) -> list[Box]:
    rows = _height(tasks)
    top = (height - (rows * (HEIGHT + GAP_Y) - GAP_Y)) // 2
    boxes = [Box(x, top + row * (HEIGHT + GAP_Y), task, _short(task)) for row, task in enumerate(tasks[:MOST])]
    if len(tasks) > MOST:
        boxes.append(Box(x, top + MOST * (HEIGHT + GAP_Y), None, "", len(tasks) - MOST))
    return boxes


def _short(task: Task) -> str:
    return task.title if len(task.title) <= LONGEST else f"{task.title[: LONGEST - 1]}…"


def _line(start: Box, end: Box) -> str:
    x, half = start.x + WIDTH, GAP_X // 2
    return f"M{x} {start.middle}C{x + half} {start.middle} {end.x - half} {end.middle} {end.x} {end.middle}"
