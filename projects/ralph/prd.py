"""Read a prd.json, in any of the shapes found in the wild.

The bytes are hostile: whatever they are, `parse_prd` returns a document or raises PrdError.
Rules: spec/projects.md, section 1.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from projects.ralph.stories import (
    ID_LIMIT,
    TEXT_LIMIT,
    TITLE_LIMIT,
    Story,
    build_story,
    first_of,
    looks_like_story,
    story_id,
    story_title,
)
from projects.ralph.text import Warnings, clean, one_line, storable

MAX_BYTES = 5 * 1024 * 1024
MAX_STORIES = 5000
MAX_DEPTH = 50

JsonPath = tuple[str | int, ...]

_BOM = b"\xef\xbb\xbf"
_LIST_KEYS = ("userStories", "user_stories", "stories", "tasks", "items")
_GROUP_KEYS = {"milestones": "milestone", "phases": "phase", "epics": "epic"}
_TOKEN = re.compile(r'\\.|["\[\]{}]|NaN|Infinity', re.DOTALL)
# Whether any number may be beyond 64 bits; asking each one costs seconds on a hostile file.
_BIG_NUMBER = re.compile(r"[0-9]{19}|[0-9][eE]\+?[0-9]{3}")
_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


class PrdError(ValueError):
    """The file cannot be read as a prd.json.

    `message` is a phrase for a person; `line` and `column` count from 1 in characters, 0 where no place in
    the file is to blame.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message, line, column)
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"{self.message} (line {self.line}, column {self.column})" if self.line else self.message


@dataclass(frozen=True, slots=True)
class Document:
    """A prd.json that could be read.

    `warnings` are at most 50 sentences and "and N more"; `raw` is the parsed JSON with its unknown keys. In
    `raw` a number beyond 64 bits is kept as its text, and U+FFFD stands for NUL and lone surrogates: no
    database and no other JSON library would take them.
    """

    project: str
    branch_name: str
    description: str
    stories: tuple[Story, ...]
    warnings: tuple[str, ...]
    raw: object


@dataclass(frozen=True, slots=True)
class _Entry:
    """A value found where a story belongs: `key` is its name in an object, "" in a list."""

    path: JsonPath
    key: str
    group: str
    value: object


def parse_prd(data: bytes) -> Document:
    """Return the document in `data`, the bytes of a prd.json.

    One odd story gives a warning and the others are still read. Parsing is deterministic. Raises PrdError and
    nothing else: for what is not UTF-8, not JSON (NaN and Infinity are not), neither an object nor an array,
    or beyond MAX_BYTES, MAX_STORIES or MAX_DEPTH.
    """
    text = _decode(data)
    raw = _load(text)
    if not isinstance(raw, dict | list):
        raise PrdError("the document is neither an object nor an array", 1, 1)
    warnings = Warnings()
    entries = _entries(raw, warnings)
    _limit(len(entries))
    stories = _stories(entries, warnings)
    _warn_of_unknown_dependencies(stories, warnings)
    head = raw if isinstance(raw, dict) else {}
    return Document(
        project=_name(first_of(head, "project", "projectName", "project_name", "name")),
        branch_name=_name(first_of(head, "branchName", "branch_name", "branch")),
        description=clean(_text(head.get("description")), TEXT_LIMIT),
        stories=stories,
        warnings=warnings.sentences(),
        raw=storable(raw) if _UNSTORABLE_ESCAPE.search(text) else raw,
    )


def story_paths(raw: object) -> tuple[JsonPath, ...]:
    """Return where each story of `Document.raw` lies: keys and indexes from the root, by `Story.position`."""
    return tuple(entry.path for entry in _entries(raw, Warnings()) if isinstance(entry.value, dict))


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise PrdError(f"the file is larger than {MAX_BYTES // 1024 // 1024} MB")
    data = data.removeprefix(_BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise _error_at("the file is not valid UTF-8", before, len(before)) from None


def _load(text: str) -> object:
    if not text.strip():
        raise PrdError("the file is empty", 1, 1)
    _refuse_depth_and_constants(text)
    parse_number = _number if _BIG_NUMBER.search(text) else None
    try:
        raw: object = json.loads(text, parse_int=parse_number, parse_float=parse_number)
    except json.JSONDecodeError as error:
        raise PrdError(f"invalid JSON: {error.msg}", error.lineno, error.colno) from None
    except RecursionError:
        # The depth is bounded above, so the caller's own stack was nearly full.
        raise PrdError("the document is nested too deeply to be read here") from None
    return raw


def _refuse_depth_and_constants(text: str) -> None:
    """Refuse before parsing what json accepts and we do not: endless nesting, NaN and infinities.

    One pass of single tokens, so it is linear whatever the text is; it also knows the place.
    """
    depth = 0
    quoted = False
    for token in _TOKEN.finditer(text):
        match token[0]:
            case '"':
                quoted = not quoted
            case _ if quoted:
                pass
            case "[" | "{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise _error_at(f"nested more than {MAX_DEPTH} deep", text, token.start())
            case "]" | "}":
                depth -= 1
            case "NaN" | "Infinity":
                raise _error_at(f"invalid JSON: {token[0]} is not a number", text, token.start())


def _error_at(message: str, text: str, offset: int) -> PrdError:
    line_start = text.rfind("\n", 0, offset) + 1
    return PrdError(message, text.count("\n", 0, offset) + 1, offset - line_start + 1)


def _number(literal: str) -> int | float | str:
    """Return the number, or its text when 64 bits cannot hold it."""
    if literal.lstrip("-").isdigit():
        number = int(literal) if len(literal) <= 20 else 2**63
        return number if -(2**63) <= number < 2**63 else literal
    value = float(literal)
    return literal if value in (float("inf"), float("-inf")) else value


def _entries(raw: object, warnings: Warnings) -> list[_Entry]:
    """Return what lies where stories belong: the first shape of the document that holds an object."""
    if isinstance(raw, list):
        return _listed(raw, ())
    if not isinstance(raw, dict):
        return []
    found = _direct(raw, ()) or _grouped(raw, warnings) or _keyed(raw, ())
    if found:
        return found
    present = next((key for key in _LIST_KEYS if key in raw), None)
    if present is None:
        if not any(key in raw for key in _GROUP_KEYS):
            warnings.add("No list of stories was found.")
        return []
    if isinstance(raw[present], dict | list):
        return _listed(raw[present], (present,))
    warnings.add(f"{present} is neither a list nor an object.")
    return []


def _limit(stories: int) -> None:
    if stories > MAX_STORIES:
        raise PrdError(f"the document has more than {MAX_STORIES} stories")


def _listed(value: object, path: JsonPath, group: str = "") -> list[_Entry]:
    """Return the items of an array, or of an object of stories keyed by id."""
    if isinstance(value, list | dict):
        _limit(len(value))
    match value:
        case list():
            return [_Entry((*path, index), "", group, item) for index, item in enumerate(value)]
        case dict():
            return [_Entry((*path, key), key, group, item) for key, item in value.items()]
        case _:
            return []


def _direct(node: dict[str, object], path: JsonPath, group: str = "") -> list[_Entry]:
    """Return the first story list of `node` in which anything is an object."""
    for key in _LIST_KEYS:
        entries = _listed(node.get(key), (*path, key), group)
        if any(isinstance(entry.value, dict) for entry in entries):
            return entries
    return []


def _keyed(node: dict[str, object], path: JsonPath, group: str = "") -> list[_Entry]:
    """Return the stories of an object keyed by id; its other keys are no stories, and no mistake either."""
    return [entry for entry in _listed(node, path, group) if looks_like_story(entry.value)]


def _grouped(raw: dict[str, object], warnings: Warnings) -> list[_Entry]:
    """Return the stories one level down, in milestones, phases or epics."""
    return [
        entry
        for plural, singular in _GROUP_KEYS.items()
        for number, group in enumerate(_listed(raw.get(plural), (plural,)), start=1)
        for entry in _of_group(group, f"{singular} {number}", warnings)
    ]


def _of_group(group: _Entry, fallback: str, warnings: Warnings) -> list[_Entry]:
    value = group.value
    match value:
        case list():
            return _listed(value, group.path, one_line(group.key, TITLE_LIMIT) or fallback)
        case dict():
            names = _text(first_of(value, "name", "title", "label")), group.key, _text(value.get("id"))
            label = next(filter(None, (one_line(name, TITLE_LIMIT) for name in names)), fallback)
            return _direct(value, group.path, label) or _keyed(value, group.path, label)
        case _:
            warnings.add(f"{fallback.capitalize()} is not an object and was left out.")
            return []


def _stories(entries: Iterable[_Entry], warnings: Warnings) -> tuple[Story, ...]:
    found = list(_objects(entries, warnings))
    titles = [story_title(fields) for _, fields in found]
    wanted = [
        story_id(fields, entry.key, title, position, warnings)
        for position, ((entry, fields), title) in enumerate(zip(found, titles, strict=True))
    ]
    ids = _unique(wanted, warnings)
    return tuple(
        build_story(
            fields,
            story_id=ids[position],
            title=titles[position],
            group=entry.group,
            position=position,
            warnings=warnings,
        )
        for position, (entry, fields) in enumerate(found)
    )


def _objects(entries: Iterable[_Entry], warnings: Warnings) -> Iterator[tuple[_Entry, dict[str, object]]]:
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry.value, dict):
            yield entry, entry.value
        else:
            name = one_line(entry.key, 60) or f"number {number}"
            warnings.add(f"Story {name} is not an object and was left out.")


def _unique(wanted: list[str], warnings: Warnings) -> list[str]:
    """Return the ids each unique: a later twin gets a suffix that no other story asks for."""
    taken = set(wanted)
    seen: set[str] = set()
    last_suffix: dict[str, int] = {}
    ids = []
    for name in wanted:
        unique = name
        if name in seen:
            stem = name[: ID_LIMIT - 10]
            suffix = last_suffix.get(stem, 1) + 1
            while f"{stem}-{suffix}" in taken:
                suffix += 1
            last_suffix[stem] = suffix
            unique = f"{stem}-{suffix}"
            taken.add(unique)
            warnings.add(f"More than one story has the id {name[:60]}; one is shown as {unique[-60:]}.")
        seen.add(name)
        ids.append(unique)
    return ids


def _warn_of_unknown_dependencies(stories: tuple[Story, ...], warnings: Warnings) -> None:
    known = {story.id for story in stories}
    for story in stories:
        for name in story.depends_on:
            if name not in known:
                warnings.add(f"Story {story.id[:60]} depends on {name[:60]}, which no story is called.")


def _name(value: object) -> str:
    if isinstance(value, dict):
        value = first_of(value, "name", "title")
    return one_line(_text(value), TITLE_LIMIT)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return ""
    return str(value) if isinstance(value, str | int | float) else ""
