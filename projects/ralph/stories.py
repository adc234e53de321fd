"""One story of a prd.json: its state, and the many spellings it is found in.

Nothing here raises on odd values: they become the nearest harmless value and a warning.
Rules: spec/projects.md, section 1 "Tolerance".
"""

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from projects.ralph.text import Warnings, clean, one_line

Fields = Mapping[str, object]

ID_LIMIT = 200
TITLE_LIMIT = 500
TEXT_LIMIT = 20_000
LIST_LIMIT = 200
NUMBER_LIMIT = 2**31 - 1

ACCEPTANCE_KEYS = (
    "acceptanceCriteria",
    "acceptance_criteria",
    "acceptance",
    "criteria",
    "actionItems",
    "action_items",
)
DEPENDS_KEYS = ("dependsOn", "depends_on", "deps", "dependencies", "blockedBy", "blocked_by")

_URGENCY_WORDS = {"high": 1, "medium": 2, "low": 3}
_BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class StoryState(enum.StrEnum):
    """The one state of a story; of several claims in the file the first of these holds."""

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    IN_PROGRESS = "in_progress"
    PENDING = "pending"


_STATUS_WORDS = {
    "done": StoryState.PASSED,
    "completed": StoryState.PASSED,
    "passed": StoryState.PASSED,
    "complete": StoryState.PASSED,
    "failed": StoryState.FAILED,
    "blocked": StoryState.BLOCKED,
    "inprogress": StoryState.IN_PROGRESS,
    "doing": StoryState.IN_PROGRESS,
    "pending": StoryState.PENDING,
    "open": StoryState.PENDING,
    "todo": StoryState.PENDING,
    "notstarted": StoryState.PENDING,
    "deferred": StoryState.PENDING,
}


@dataclass(frozen=True, slots=True)
class Story:
    """A story as it is shown; every text is storable and bounded, and `id` is unique in its document.

    `priority` is 1 for the first unless the file says otherwise; `group` is the label of the milestone, phase
    or epic, "" if none; `position` counts from 0 in file order over the stories that could be read.
    """

    id: str
    title: str
    description: str
    acceptance_criteria: tuple[str, ...]
    priority: int
    state: StoryState
    tags: tuple[str, ...]
    depends_on: tuple[str, ...]
    retries: int
    failure_reason: str
    notes: str
    group: str
    position: int
    requires_design_review: bool

    @property
    def passes(self) -> bool:
        """Whether the story is done."""
        return self.state is StoryState.PASSED

    @property
    def failed(self) -> bool:
        """Whether the loop gave the story up."""
        return self.state is StoryState.FAILED

    @property
    def blocked(self) -> bool:
        """Whether the story waits for a person."""
        return self.state is StoryState.BLOCKED


def current_story(stories: Iterable[Story]) -> Story | None:
    """Return the open story with the lowest (priority, id) whose dependencies have all passed.

    A dependency on an id that no story has does not block: parse_prd has warned about it.
    """
    known = list(stories)
    unfinished = {story.id for story in known if not story.passes}
    ready = (
        story
        for story in known
        if story.state in (StoryState.PENDING, StoryState.IN_PROGRESS) and unfinished.isdisjoint(story.depends_on)
    )
    return min(ready, key=lambda story: (story.priority, story.id), default=None)


def looks_like_story(value: object) -> bool:
    """Return whether a value under an unknown key is a story, and not some other object."""
    telling = {"title", "passes", "status", "priority", *ACCEPTANCE_KEYS}
    return isinstance(value, dict) and not telling.isdisjoint(value)


def story_title(fields: Fields) -> str:
    """Return the title, else the first line of the description, else ""."""
    title = one_line(_words(first_of(fields, "title", "name")), TITLE_LIMIT)
    return title or one_line(_words(fields.get("description")).strip().partition("\n")[0], TITLE_LIMIT)


def story_id(fields: Fields, key: str, title: str, position: int, warnings: Warnings) -> str:
    """Return the id that the file asks for: its own, else its key in an object, else a stable made-up one."""
    given = first_of(fields, "id", "storyId", "story_id")
    wanted = _as_id(given) or _as_id(key)
    if given is not None and not _as_id(given):
        warnings.add(f"Story {position + 1} has an id that is neither text nor a number.")
    if wanted:
        return wanted
    made_up = f"story-{position + 1}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"
    if given is None:
        warnings.add(f"Story {position + 1} has no id and is shown as {made_up}.")
    return made_up


def build_story(fields: Fields, *, story_id: str, title: str, group: str, position: int, warnings: Warnings) -> Story:
    """Return the story that `fields` describe; what cannot be understood is left out with a warning."""
    reader = _Reader(fields, f"Story {story_id[:60]}", warnings)
    return Story(
        id=story_id,
        title=title or story_id,
        description=reader.text("description"),
        acceptance_criteria=reader.criteria(),
        priority=reader.priority(position),
        state=reader.state(),
        tags=reader.labels("tags", "labels"),
        depends_on=reader.labels(*DEPENDS_KEYS),
        retries=reader.retries(),
        failure_reason=reader.text("failureReason", "failure_reason"),
        notes=reader.text("notes"),
        group=group,
        position=position,
        requires_design_review=reader.flag("requiresDesignReview", "requires_design_review"),
    )


def first_of(fields: Fields, *keys: str) -> object:
    """Return the first value among `keys` that says something, else None."""
    return next((fields[key] for key in keys if fields.get(key) not in (None, "", [], {})), None)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the fields of one story, and says in its name what was odd."""

    fields: Fields
    where: str
    warnings: Warnings

    def warn(self, what: str) -> None:
        self.warnings.add(f"{self.where}: {what}.")

    def text(self, *keys: str) -> str:
        value = first_of(self.fields, *keys)
        words = _words(value)
        if value is not None and not words:
            self.warn(f"{keys[0]} is not text")
        return clean(words, TEXT_LIMIT).strip()

    def flag(self, *keys: str) -> bool:
        value = first_of(self.fields, *keys)
        match value:
            case None:
                return False
            case bool() | int() | float() if value in (0, 1):
                return bool(value)
            case str() if value.strip().lower() in _BOOLEAN_WORDS:
                return _BOOLEAN_WORDS[value.strip().lower()]
        self.warn(f"{keys[0]} is neither true nor false and counts as false")
        return False

    def state(self) -> StoryState:
        claims = {self._status()}
        for keys, state in (
            (("passes", "passed"), StoryState.PASSED),
            (("failed",), StoryState.FAILED),
            (("blocked",), StoryState.BLOCKED),
        ):
            if self.flag(*keys):
                claims.add(state)
        return next(state for state in StoryState if state in claims)

    def _status(self) -> StoryState:
        value = first_of(self.fields, "status")
        if value is None:
            return StoryState.PENDING
        word = re.sub(r"[\s_-]+", "", value[:80]).lower() if isinstance(value, str) else ""
        if word not in _STATUS_WORDS:
            shown = f' "{one_line(value, 40)}"' if isinstance(value, str) else ""
            self.warn(f"the status{shown} is unknown and counts as pending")
        return _STATUS_WORDS.get(word, StoryState.PENDING)

    def priority(self, position: int) -> int:
        value = first_of(self.fields, "priority")
        number = _urgency(value)
        if number is None:
            if value is not None:
                self.warn("the priority is unknown, so the order of the file counts")
            return position + 1
        return max(-NUMBER_LIMIT, min(number, NUMBER_LIMIT))

    def retries(self) -> int:
        value = first_of(self.fields, "retries", "retryCount", "retry_count")
        number = 0 if value is None else _integer(value)
        if number is None or number < 0:
            self.warn("retries is not a count and is taken as 0")
            return 0
        return min(number, NUMBER_LIMIT)

    def criteria(self) -> tuple[str, ...]:
        value = first_of(self.fields, *ACCEPTANCE_KEYS)
        return self._texts(value, ("text", "description", "criterion", "title"), "acceptance criterion")

    def labels(self, *keys: str) -> tuple[str, ...]:
        value = first_of(self.fields, *keys)
        if isinstance(value, str):
            value = value.split(",")
        found = self._texts(value, ("id", "name"), f"entry of {keys[0]}")
        return tuple(dict.fromkeys(filter(None, (one_line(text, ID_LIMIT) for text in found))))

    def _texts(self, value: object, keys: tuple[str, ...], what: str) -> tuple[str, ...]:
        items = _items(value, keys)
        if len(items) > LIST_LIMIT:
            self.warn(f"only the first {LIST_LIMIT} of {len(items)} are kept for each {what}")
        texts = []
        for item in items[:LIST_LIMIT]:
            text = clean(_scalar(first_of(item, *keys) if isinstance(item, dict) else item), TEXT_LIMIT).strip()
            if text:
                texts.append(text)
            elif item not in (None, ""):
                self.warn(f"an {what} is not text and was left out")
        return tuple(texts)


def _items(value: object, keys: tuple[str, ...]) -> list[object]:
    """Return a list of what may be a list, an object of named items, or a single item."""
    match value:
        case None:
            return []
        case list():
            return value
        case dict() if value.keys().isdisjoint(keys):
            return list(value.values())
        case _:
            return [value]


def _scalar(value: object) -> str:
    match value:
        case str():
            return value
        case bool():
            return ""
        case int() | float():
            return str(value)
        case _:
            return ""


def _words(value: object) -> str:
    """Return text, a number as text, or a list of those as lines; "" for anything else."""
    if isinstance(value, list):
        return "\n".join(filter(None, (_scalar(item) for item in value)))
    return _scalar(value)


def _as_id(value: object) -> str:
    return one_line(_scalar(value), ID_LIMIT)


def _integer(value: object) -> int | None:
    match value:
        case bool():
            return None
        case int():
            return value
        case float() if value.is_integer():
            return int(value)
        case str() if re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
            return int(value)
        case _:
            return None


def _urgency(value: object) -> int | None:
    """Return a priority as a number, lower is more urgent: 3, "3", "P0" to "P4", "high", "medium", "low"."""
    number = _integer(value)
    if number is not None or not isinstance(value, str):
        return number
    word = value.strip().lower()
    if re.fullmatch(r"p[0-4]", word):
        return int(word[1])
    return _URGENCY_WORDS.get(word)
