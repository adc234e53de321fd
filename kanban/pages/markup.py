"""Cards as HTML, written without a template: 500 of them are a page's whole budget of time.

Everything that a person or an agent wrote passes `_text`; the rest are our own words.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import Truncator
from django.utils.translation import gettext as _

from kanban.pages.cards import Card, Chip
from projects.templatetags.andon import age, visible

LONGEST_TITLE = 140
LONGEST_REASON = 120


class Writer:
    """Writes cards for one answer: words are looked up once. `is_fragment`: ages stay as they are, for the ETag."""

    def __init__(self, *, can_operate: bool, is_fragment: bool, now: datetime) -> None:
        self._can_operate = can_operate
        self._is_fragment = is_fragment
        self._now = now
        self._ages: dict[tuple[int, int], str] = {}
        self._signs = escape(static("img/status.svg"))
        self._select, self._move, self._priority = escape(_("Select")), escape(_("Move")), escape(_("Priority"))
        self._parents, self._children = escape(_("parents closed")), escape(_("children closed"))
        self._comments, self._heard = escape(_("comments")), escape(_("last heard"))
        self._quiet, self._failed = _("no activity %s"), _("failed %(n)d/%(limit)d")

    def cards(self, found: Iterable[Card]) -> SafeString:
        """Return cards as items of a list."""
        return mark_safe("".join(map(self._card, found)))  # noqa: S308 (each part is escaped where it is written)

    def _card(self, card: Card) -> str:
        task, key = card.task, escape(card.task.id)
        state = f" is-quiet is-{card.level}" if card.level else ""
        parts = [
            f'<li id="{key}" class="task{state}" data-row data-task="{key}" data-seen="{escape(card.seen)}">',
            f'<div class="task-top">{self._top(card)}</div>',
            f'<a class="task-title" href="/kanban/tasks/{key}/">{_text(task.title, LONGEST_TITLE)}</a>',
        ]
        if card.chips:
            parts.append(f'<div class="chips">{"".join(map(self._chip, card.chips))}</div>')
        if card.reason:
            parts.append(f'<p class="task-reason">{_text(card.reason, LONGEST_REASON)}</p>')
        if card.quiet:
            parts.append(f'<p class="task-quiet" data-status="{card.level}">{escape(self._quiet % card.quiet)}</p>')
        parts.append(f'<div class="task-foot">{self._foot(card)}</div></li>\n')
        return "".join(parts)

    def _top(self, card: Card) -> str:
        task, key = card.task, escape(card.task.id)
        found = f'<span class="mono">{key}</span>'
        if task.priority:
            word = f'<span class="visually-hidden">{self._priority} </span>'
            found += f'<span class="prio" title="{self._priority}">{word}P{task.priority}</span>'
        if not self._can_operate:
            return found
        box = f'<input type="checkbox" form="bulk" name="ids" value="{key}" aria-label="{self._select} {key}">'
        link = (
            f'<a class="task-move" href="/kanban/tasks/{key}/move/" data-dialog data-needs-server '
            f'aria-label="{self._move} {key}">{self._move}</a>'
        )
        return box + found + link

    def _sign(self, name: str) -> str:
        return f'<svg class="shape" viewBox="0 0 16 16" aria-hidden="true"><use href="{self._signs}#{name}"/></svg>'

    def _chip(self, chip: Chip) -> str:
        at = f" {timezone.localtime(chip.at):%H:%M}" if chip.at else ""
        return (
            f'<span class="status" data-status="{chip.status}">{self._sign(chip.status)}{escape(chip.label)}{at}</span>'
        )

    def _foot(self, card: Card) -> str:
        task, marks = card.task, card.marks
        found = [f'<span class="who">{_text(task.assignee)}</span>'] if task.assignee else []
        found += [f"<span>{_text(name)}</span>" for name in (task.project, task.tenant) if name]
        if marks.parents:
            found.append(_count("↑", f"{marks.parents_closed}/{marks.parents}", self._parents))
        if marks.children:
            found.append(_count("↓", f"{marks.children_closed}/{marks.children}", self._children))
        if marks.comments:
            found.append(_count(self._sign("comment"), str(marks.comments), self._comments))
        if task.failures:
            said = self._failed % {"n": task.failures, "limit": card.limit}
            found.append(f'<span class="fails">{escape(said)}</span>')
        if card.heard_at:
            found.append(f'<span class="heard">{self._heard} {self._age(card.heard_at)}</span>')
        else:
            found.append(f'<span class="age">{self._age(task.since)}</span>')
        return "".join(found)

    def _age(self, at: datetime) -> str:
        local = timezone.localtime(at)
        text = f"{local:%Y-%m-%d %H:%M}" if self._is_fragment else self._ago(at)
        moment = at.astimezone(UTC).isoformat(timespec="seconds")
        return f'<time datetime="{moment}" data-age title="{local:%Y-%m-%d %H:%M:%S %Z}">{text}</time>'

    def _ago(self, at: datetime) -> str:
        """Return an age in words; of hundreds most are said alike."""
        seconds = int((self._now - at).total_seconds())
        size = 86_400 if seconds >= 86_400 else 3600 if seconds >= 3600 else 60 if seconds >= 60 else 1
        key = (size, seconds // size)
        if key not in self._ages:
            self._ages[key] = escape(age(at, self._now))
        return self._ages[key]


def _text(text: str, longest: int = 0) -> str:
    shown = visible(text)
    if longest and len(shown) > longest:
        shown = Truncator(shown).chars(longest)
    return escape(shown)


def _count(sign: str, number: str, words: str) -> str:
    return f'<span title="{words}">{sign} {number}<span class="visually-hidden"> {words}</span></span>'
