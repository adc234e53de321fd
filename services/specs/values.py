"""JSON values taken as what they are, never as what they could be made into."""

from typing import Any, TypeGuard

# Deeper than any honest file, and shallow enough for every parser and database behind us.
MAX_DEPTH = 100


def is_storable(text: str) -> bool:
    """Tell whether a text can be an argument, a path and a database value: no NUL, no lone surrogate."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether it is a storable text."""
    return isinstance(value, str) and is_storable(value)


def number(value: object) -> int | float | None:
    """Return a JSON number, an integral one as int; None for anything else (`true` is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def integer(value: object, low: int, high: int) -> int | None:
    """Return a JSON number that is an integer within the bounds, both included; None for anything else."""
    found = number(value)
    return found if isinstance(found, int) and low <= found <= high else None


def given(document: dict[str, Any], key: str, default: object) -> Any:
    """Return an optional field; null means absent."""
    value = document.get(key)
    return default if value is None else value


def is_deeper(document: object, depth: int) -> bool:
    """Tell whether arrays and objects are nested more than `depth` deep."""
    level = [document]
    while level:
        if depth < 0:
            return True
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        level = inner
        depth -= 1
    return False
