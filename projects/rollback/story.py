"""Say which story a rollback reopens. Texts and bytes are hostile; whatever they hold, nothing here raises.

Rules: spec/projects.md, section 5.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from projects.ralph import Document, PrdError, StoryState, parse_prd

CANDIDATES = 50

_SUBJECT_LIMIT = 500
_PREFIX = re.compile(r"(?P<type>[A-Za-z][\w/-]*)(?:\((?P<scope>[^()]*)\))?!?: ?")
_BRACKETS = re.compile(r" ?(?:\[([^\[\]]*)\]|\(([^()]*)\))")
_SEPARATOR = re.compile(r" ?(?:[,;/&+]|\band\b) ?")
_GOES_ON = re.compile(r"\w|[-.]\w|\.\.")
_ANYTHING = re.compile("")
_COLON = re.compile(r" ?:")
_STOP = re.compile(r" ?:| [-–—] |$")


@dataclass(frozen=True, slots=True)
class Choice:
    """The story to reopen, always one that is on disk.

    `story` is "" while it is unknown; then `candidates` are the ids a person may choose from, most likely
    first, at most CANDIDATES. With a story there are none.
    """

    story: str = ""
    title: str = ""
    candidates: tuple[str, ...] = ()


def choose(
    *,
    subject: str,
    named: str,
    own: str,
    head_document: bytes | None,
    disk_document: bytes | None,
    parent_document: bytes | None,
) -> Choice:
    """Return the story that undoing a commit reopens.

    `subject` is the commit's first line, `named` what the caller asks for, `own` what our own record of the
    iteration says; "" = nothing. The documents are the bytes of prd.json in the commit, on disk now and in the
    commit's first parent; one that is None, invalid or too large is as good as absent.

    What the caller names holds, or nothing does. Else the first that speaks: the subject, our own record, the
    one flip to passed from the commit to the disk, and if these agree on what has passed, the one flip that the
    commit itself holds. It stays unknown when the one that speaks means several stories or none that is on
    disk, and when the commit's prd.json is of another branch than the one on disk: its ids mean other stories.
    """
    disk, head, parent = _read(disk_document), _read(head_document), _read(parent_document)
    if disk is None:
        return Choice()
    said = _named_by(subject, _ids(disk, head, parent))
    own_words = (own,) if own else ()
    since, inside = _flips(head, disk), _flips(parent, head)
    if named:
        meant: tuple[str, ...] = (named,)
    elif _is_another_plan(head, disk):
        meant = ()
    else:
        meant = said or own_words or _by_flips(disk, head, parent)
    titles = {story.id: story.title for story in disk.stories}
    if len(meant) == 1 and meant[0] in titles:
        return Choice(story=meant[0], title=titles[meant[0]])
    likely = dict.fromkeys((*said, *own_words, *since, *inside, *_passed(disk)))
    # Where nothing is likely any story may be meant.
    found = tuple(story for story in likely if story in titles) or tuple(titles)
    return Choice(candidates=found[:CANDIDATES])


def _read(document: bytes | None) -> Document | None:
    try:
        return None if document is None else parse_prd(document)
    except PrdError:
        return None


def _ids(*documents: Document | None) -> frozenset[str]:
    return frozenset(story.id for document in documents if document for story in document.stories)


def _passed(document: Document) -> list[str]:
    return [story.id for story in document.stories if story.state is StoryState.PASSED]


def _is_another_plan(one: Document | None, other: Document | None) -> bool:
    """Return whether both say their branch and it is not the same: a loop begins its next prd.json that way."""
    return bool(one and other and one.branch_name and other.branch_name and one.branch_name != other.branch_name)


def _flips(before: Document | None, after: Document | None) -> list[str]:
    """Return the stories that have passed in `after` and not, or not yet at all, in `before`."""
    if before is None or after is None or _is_another_plan(before, after):
        return []
    earlier = frozenset(_passed(before))
    return [story for story in _passed(after) if story not in earlier]


def _by_flips(disk: Document, head: Document | None, parent: Document | None) -> tuple[str, ...]:
    if head is None:
        return ()
    since = _flips(head, disk)
    if since:
        return _only(since, head)
    if _flips(disk, head):
        return ()
    return _only(_flips(parent, head), parent)


def _only(flips: list[str], before: Document | None) -> tuple[str, ...]:
    """Return the single flip; one that came into the file as passed is none that was seen."""
    return tuple(flips) if len(flips) == 1 and flips[0] in _ids(before) else ()


def _named_by(subject: str, ids: Collection[str]) -> tuple[str, ...]:
    """Return the stories that a commit's subject is about: several when it names several.

    `[US-001] …`, `US-001: …`, `feat: [US-001] …`, `fix(api): US-001 …`, `feat(US-001): …`. A mention further
    on in the sentence counts as little as the commit that another one reverts.
    """
    text = " ".join(subject[:_SUBJECT_LIMIT].split())
    known = _Known(ids)
    prefix = _PREFIX.match(text)
    if prefix and prefix["type"].lower() == "revert":
        return ()
    found = _in_brackets(text, 0, known) or _bare(text, 0, known, _STOP)
    if prefix and not found:
        found = _in_brackets(text, prefix.end(), known) or _bare(text, prefix.end(), known, _ANYTHING)
        scope = prefix["scope"] or ""
        if not found and _has_shape(scope):
            found = known.called(scope)
    return tuple(dict.fromkeys(found))


class _Known:
    """The ids of all stories; the same case is preferred to another."""

    def __init__(self, ids: Collection[str]) -> None:
        longest_first = sorted(ids, key=lambda story: (-len(story), story))
        self._as_words: list[tuple[Callable[[str], str], dict[str, str]]] = [
            (same, {same(story): story for story in reversed(longest_first)}) for same in (str, str.casefold)
        ]
        self._longest_first = [story for story in longest_first if _has_letter(story)]

    def called(self, words: str) -> list[str]:
        """Return the one story that is called so, or none."""
        return next(([names[same(words)]] for same, names in self._as_words if same(words) in names), [])

    def at(self, text: str, start: int) -> str:
        """Return the longest id that stands at `start` as whole words, a letter among them; else ""."""
        for same, _ in self._as_words:
            for story in self._longest_first:
                end = start + len(story)
                if same(text[start:end]) == same(story) and not _GOES_ON.match(text, end):
                    return story
        return ""


def _in_brackets(text: str, start: int, known: _Known) -> list[str]:
    """Return the stories in the brackets that begin at `start` and follow each other: `[A] [B]`, `[A, B]`."""
    found: list[str] = []
    while brackets := _BRACKETS.match(text, start):
        words = (brackets[1] or brackets[2] or "").strip()
        parts = _SEPARATOR.split(words)
        found += known.called(words) or [story for part in parts for story in known.called(part.strip())]
        start = brackets.end()
    return found


def _bare(text: str, start: int, known: _Known, then: re.Pattern[str]) -> list[str]:
    """Return the stories listed at `start` without brackets, if `then` follows."""
    found = []
    end = start
    while story := known.at(text, start):
        found.append(story)
        end = start + len(story)
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            break
        start = separator.end()
    if not found or not then.match(text, end):
        return []
    # A plain word is rather part of the sentence: "feat: login works".
    return found if _has_shape(found[0]) or _COLON.match(text, end) else []


def _has_letter(story: str) -> bool:
    """Return whether it is no bare number: 12 or 1.2 may be a count or a version."""
    return any(character.isalpha() for character in story)


def _has_shape(story: str) -> bool:
    """Return whether it looks like an id, and not like a word or a number of a sentence."""
    return _has_letter(story) and not story.isalpha()
