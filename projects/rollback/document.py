"""Reopen a story in a prd.json and leave every other byte as it is.

The bytes are hostile. Rules: spec/projects.md, section 5; what counts as open is what `projects.ralph` says.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from projects.ralph import (
    MAX_BYTES,
    PrdError,
    Story,
    StoryState,
    Unreadable,
    open_directory,
    parse_prd,
    read_inside,
    story_paths,
)
from projects.ralph.prd import JsonPath
from projects.ralph.stories import build_story
from projects.ralph.text import Warnings, one_line

_BOM = b"\xef\xbb\xbf"
_PASSES = frozenset({"passes", "passed", "done", "completed"})
_RETRIES = frozenset({"retries", "retryCount", "retry_count"})
_REASONS = frozenset({"failureReason", "failure_reason"})
_REMOVED = frozenset({"failed", "blocked"}) | _REASONS
_TOUCHED = _PASSES | _RETRIES | _REMOVED | {"status"}
_OPPOSITES = {"true": "false", "yes": "no", "1": "0"}
_OPEN_WORD_LIMIT = 40
# Far more than parse_prd takes as stories; only twins of one key come to more.
_MEMBERS_LIMIT = 20_000

_SPACE = re.compile(r"[ \t\n\r]*+")
_PLAIN = re.compile(r"[^ \t\n\r,\]}]++")
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]')


class Changed(OSError):
    """Somebody else has written the file meanwhile; nothing was done to it."""


@dataclass(frozen=True, slots=True)
class _Edit:
    """Characters `start` to `end` of the text become `instead`."""

    start: int
    end: int
    instead: str


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a JSON object or array: where it starts (its key, if it has one), and its value."""

    key: str | int
    start: int
    value: int
    end: int


def reopen(document: bytes, story_id: str) -> bytes:
    """Return the bytes of a prd.json with one story open again, and nothing else in it changed.

    Of that story: what says that it has passed says the opposite, a status becomes the document's own word for
    open, `failed`, `blocked` and the reason of the failure are taken out, and retries become 0. A story that is
    open already gives the same bytes. Raises ValueError with a sentence when the document cannot be read, has
    no such story, or cannot be edited without changing more.
    """
    try:
        return _reopen(document, story_id)
    except PrdError as error:
        raise ValueError(f"The prd.json cannot be read: {error}.") from error
    except RecursionError:
        # The depth is bounded by parse_prd, so the caller's own stack was nearly full.
        raise ValueError("The prd.json is nested too deeply to be edited here.") from None


def reopen_on_disk(root: Path, prd: Path, story_id: str, *, expected_sha256: str | None = None) -> str:
    """Reopen a story in the file `prd`, relative to `root`, and return the SHA-256 of what it holds then.

    The file is replaced in one step by a new one with its mode and owner, and both are on disk on return; one whose
    story is open already is not touched. Raises Changed when it is not what `expected_sha256` says, or changes then,
    FileNotFoundError, Unreadable when it is no file inside `root` or has an owner that we may not give it back to,
    OSError, and ValueError as `reopen` does. It is as it was then, unless the directory's sync failed: that comes last.
    """
    before = read_inside(root, prd, MAX_BYTES)
    digest = hashlib.sha256(before).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256:
        raise _changed(prd)
    after = reopen(before, story_id)
    if after == before:
        return digest
    directory = open_directory(root, prd.parent, one_line(str(prd.parent), 200), access=os.O_RDONLY)
    try:
        _replace(directory, prd.name, before, after)
    finally:
        os.close(directory)
    return hashlib.sha256(after).hexdigest()


def _reopen(document: bytes, story_id: str) -> bytes:
    stories = parse_prd(document).stories
    story = next((story for story in stories if story.id == story_id), None)
    if story is None:
        raise ValueError(f"The prd.json has no story {one_line(story_id, 60)}.")
    text = document.removeprefix(_BOM).decode()
    raw = _load(text)
    paths = story_paths(raw)
    edits = _edits(text, _find(text, paths[story.position]), _open_word(raw, paths))
    if not edits:
        return document
    edited = _apply(text, edits)
    after = (_BOM if document.startswith(_BOM) else b"") + edited.encode()
    outcome = parse_prd(after).stories
    _refuse_more_than_asked(text, edited, paths[story.position])
    _refuse_other_outcome(stories, outcome, story)
    return after


def _find(text: str, path: JsonPath) -> int:
    """Return where the value at `path` starts; of twins the last counts, as in json."""
    at = _after_space(text, 0)
    for step in path:
        at = [member.value for member in _members(text, at) if member.key == step][-1]
    return at


def _members(text: str, start: int) -> Iterator[_Member]:
    """Give what the object or array at `start` of valid JSON holds; raises ValueError when that is endless."""
    at = _after_space(text, start + 1)
    index = 0
    while text[at] not in "]}":
        first = at
        key: str | int = index
        if text[start] == "{":
            end = _end(text, at)
            key = json.loads(text[at:end])
            at = _after_space(text, _after_space(text, end) + 1)
        end = _end(text, at)
        yield _Member(key, first, at, end)
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
        index += 1
        if index > _MEMBERS_LIMIT:
            raise ValueError(f"Something in the prd.json has more than {_MEMBERS_LIMIT} members.")


def _end(text: str, start: int) -> int:
    """Return where the JSON value at `start` ends."""
    if text[start] not in '"[{':
        plain = _PLAIN.match(text, start)
        return plain.end() if plain else start
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return len(text)


def _after_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _edits(text: str, start: int, open_word: str | None) -> list[_Edit]:
    """Return what must change in the object at `start`, in order; nothing when its story is open already."""
    found = list(_members(text, start))
    touched = [(each, _load(text[each.value : each.end])) for each in found if each.key in _TOUCHED]
    changes = [
        _Edit(each.value, each.end, instead)
        for each, value in touched
        if (instead := _instead(each.key, value, text[each.value : each.end], open_word)) is not None
    ]
    speaks = any(each.key in _REMOVED and _says_something(each.key, value) for each, value in touched)
    if not changes and not speaks:
        return []
    return sorted([*changes, *_removals(found, start, text)], key=lambda edit: edit.start)


def _instead(key: str | int, value: object, literal: str, open_word: str | None) -> str | None:
    """Return the JSON that an open story has for a value, None when it may stay."""
    if key in _PASSES and _state(passes=value) is StoryState.PASSED:
        return _opposite(value, literal)
    if key == "status" and _state(status=value) is not StoryState.PENDING:
        return open_word or json.dumps(_cased("pending", str(value).strip()))
    if key in _RETRIES and value not in (None, "", [], {}) and not _is_zero(value):
        return '"0"' if isinstance(value, str) else "0"
    return None


def _opposite(value: object, literal: str) -> str:
    match value:
        case bool():
            return "false"
        case str():
            word = value.strip()
            return json.dumps(_cased(_OPPOSITES[word.lower()], word))
        case _:
            return literal.replace("1", "0") if literal.strip("0") in ("1", "1.") else "0"


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word


def _is_zero(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lstrip("+-").strip("0") == ""
    return isinstance(value, float) and value == 0


def _says_something(key: str | int, value: object) -> bool:
    if key in _REASONS:
        return value not in (None, "", [], {})
    return _state(**{str(key): value}) is not StoryState.PENDING


def _state(**fields: object) -> StoryState:
    """Return the state of a story that says nothing but this."""
    return build_story(fields, story_id="", title="", group="", position=0, warnings=Warnings()).state


def _open_word(raw: object, paths: Iterable[JsonPath]) -> str | None:
    """Return, as JSON, the status that most open stories of the document have, None when there is none."""
    found = (_at(raw, path).get("status") for path in paths)
    words = Counter(word for word in found if isinstance(word, str) and 0 < len(word) <= _OPEN_WORD_LIMIT)
    return next((json.dumps(word) for word, _ in words.most_common() if _is_open_word(word)), None)


def _is_open_word(word: str) -> bool:
    """Return whether it is known to mean open; a deferred story is put off, not open."""
    warnings = Warnings()
    story = build_story({"status": word}, story_id="", title="", group="", position=0, warnings=warnings)
    return story.state is StoryState.PENDING and not warnings.sentences() and word.strip().lower() != "deferred"


def _at(raw: object, path: JsonPath) -> dict[str, object]:
    for step in path:
        raw = raw[step]  # type: ignore[index]
    return raw if isinstance(raw, dict) else {}


def _removals(found: list[_Member], start: int, text: str) -> list[_Edit]:
    """Return the edits that take out the members of _REMOVED, each with one comma and the space around it."""
    if all(member.key in _REMOVED for member in found):
        return [_Edit(start + 1, text.index("}", found[-1].end), "")]
    edits = []
    stays_before = False
    for index, member in enumerate(found):
        if member.key not in _REMOVED:
            stays_before = True
        elif stays_before:
            edits.append(_Edit(found[index - 1].end, member.end, ""))
        else:
            edits.append(_Edit(member.start, found[index + 1].start, ""))
    return edits


def _apply(text: str, edits: Iterable[_Edit]) -> str:
    parts = []
    done = 0
    for edit in edits:
        parts += [text[done : edit.start], edit.instead]
        done = edit.end
    return "".join((*parts, text[done:]))


def _load(text: str) -> object:
    """Return parsed JSON with every number as a float: int() refuses thousands of digits."""
    return json.loads(text, parse_int=float, parse_float=float)


def _refuse_more_than_asked(before: str, after: str, path: JsonPath) -> None:
    """Compare the documents value by value, with duplicate keys and the spelling of numbers."""
    rest, story = _apart(_spelled(before), path)
    rest_after, story_after = _apart(_spelled(after), path)
    if rest != rest_after or _untouched(story) != _untouched(story_after):
        raise ValueError("The story cannot be reopened without changing more of the prd.json.")


def _spelled(text: str) -> object:
    """Return parsed JSON: objects as tuples of their pairs, arrays as lists, numbers as their bytes."""
    return json.loads(text, object_pairs_hook=tuple, parse_int=str.encode, parse_float=str.encode)


def _apart(value: object, path: JsonPath) -> tuple[object, object]:
    """Return the document with None where the story at `path` was, and the story."""
    if not path:
        return None, value
    step, *below = path
    match value:
        case tuple():
            index = max(number for number, (key, _) in enumerate(value) if key == step)
            rest, story = _apart(value[index][1], tuple(below))
            return (*value[:index], (step, rest), *value[index + 1 :]), story
        case list() if isinstance(step, int):
            rest, story = _apart(value[step], tuple(below))
            return [*value[:step], rest, *value[step + 1 :]], story
    raise ValueError("The story is not where it was in the prd.json.")


def _untouched(story: object) -> list[object]:
    return [pair for pair in story if pair[0] not in _TOUCHED] if isinstance(story, tuple) else [story]


def _refuse_other_outcome(before: tuple[Story, ...], after: tuple[Story, ...], story: Story) -> None:
    """Raise ValueError unless the one story is open now and all others are what they were."""
    index = story.position
    if before[:index] + before[index + 1 :] == after[:index] + after[index + 1 :]:
        now = after[index]
        if (now.id, now.state, now.retries, now.failure_reason) == (story.id, StoryState.PENDING, 0, ""):
            return
    raise ValueError(f"Story {one_line(story.id, 60)} cannot be reopened in this prd.json.")


def _changed(prd: PurePath | str) -> Changed:
    return Changed(f"{one_line(str(prd), 200)} was changed by somebody else meanwhile.")


def _replace(directory: int, name: str, before: bytes, after: bytes) -> None:
    """Put a new file in the place of `name`; what somebody wrote meanwhile is not overwritten."""
    was = _stat_of(directory, name, before)
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(after)
            file.flush()
            _keep_owner(descriptor, was, name)
            os.fsync(descriptor)
        _stat_of(directory, name, before, was)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _stat_of(directory: int, name: str, held: bytes, was: os.stat_result | None = None) -> os.stat_result:
    """Return what the file is; raises Changed unless it holds these bytes for the owner and with the mode it had."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            raise _changed(name) from error
        raise
    try:
        now = os.fstat(descriptor)
        if not stat.S_ISREG(now.st_mode):
            raise _changed(name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            if file.read(MAX_BYTES + 1) != held:
                raise _changed(name)
    finally:
        os.close(descriptor)
    if was and _access(now) != _access(was):
        raise _changed(name)
    return now


def _access(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)


def _keep_owner(descriptor: int, was: os.stat_result, name: str) -> None:
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (was.st_uid, was.st_gid):
        try:
            os.fchown(descriptor, was.st_uid, was.st_gid)
        except PermissionError:
            # The group alone is given up: without it the file is still its owner's.
            if made.st_uid != was.st_uid:
                shown = one_line(name, 200)
                raise Unreadable(f"{shown} belongs to another user, and we may not write it as theirs") from None
    os.fchmod(descriptor, stat.S_IMODE(was.st_mode))
