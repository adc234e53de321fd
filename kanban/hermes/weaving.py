"""Links in bulk: what is new and closes no circle, in time that grows with their number."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from kanban.links import lock_graph
from kanban.models import Link

Pair = tuple[str, str]
# Beyond so many links that may lie on circles none of them is brought in: each is a walk of its own.
MOST_DOUBTFUL = 2000


def weave(pairs: Sequence[Pair], *, apply: bool) -> tuple[int, list[Pair]]:
    """Add (parent, child) links; inside `writing()` when they are applied. Returns how many, and what was refused."""
    if apply:
        lock_graph()
    here = set(Link.objects.values_list("parent_id", "child_id"))
    fresh = [pair for pair in dict.fromkeys(pairs) if pair not in here]
    refused = [pair for pair in fresh if pair[0] == pair[1]]
    fresh = [pair for pair in fresh if pair[0] != pair[1]]
    core = _core([*here, *fresh])
    doubtful = [pair for pair in fresh if pair[0] in core and pair[1] in core]
    if len(doubtful) > MOST_DOUBTFUL:
        refused += doubtful
    else:
        refused += _closing(here, [pair for pair in fresh if pair not in set(doubtful)], doubtful)
    dropped = set(refused)
    made = [pair for pair in fresh if pair not in dropped]
    if apply:
        Link.objects.bulk_create((Link(parent_id=parent, child_id=child) for parent, child in made), batch_size=500)
    return len(made), refused


def _core(pairs: Sequence[Pair]) -> set[str]:
    """Return the tasks that may lie on a circle: those that circles lead to and that lead to circles."""
    below = _behind_circles(pairs)
    return _behind_circles([(child, parent) for parent, child in pairs if parent in below and child in below])


def _behind_circles(pairs: Iterable[Pair]) -> set[str]:
    """Return what is left when tasks without parents are taken away, then those that have none now, and so on."""
    children: defaultdict[str, list[str]] = defaultdict(list)
    waits: defaultdict[str, int] = defaultdict(int)
    tasks: set[str] = set()
    for parent, child in pairs:
        children[parent].append(child)
        waits[child] += 1
        tasks |= {parent, child}
    free = [task for task in tasks if not waits[task]]
    while free:
        task = free.pop()
        tasks.discard(task)
        for child in children[task]:
            waits[child] -= 1
            if not waits[child]:
                free.append(child)
    return tasks


def _closing(here: Iterable[Pair], sure: Iterable[Pair], doubtful: Sequence[Pair]) -> list[Pair]:
    """Return those of the doubtful that would close a circle, looked at one after another."""
    above: defaultdict[str, list[str]] = defaultdict(list)
    for parent, child in (*here, *sure):
        above[child].append(parent)
    refused = []
    for parent, child in doubtful:
        if _leads(above, parent, child):
            refused.append((parent, child))
        else:
            above[child].append(parent)
    return refused


def _leads(above: dict[str, list[str]], start: str, goal: str) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        task = waiting.pop()
        if task == goal:
            return True
        for parent in above.get(task, ()):
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return False
