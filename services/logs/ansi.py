"""Terminal output as inert HTML: colours become spans, every other control sequence vanishes.

Sequences are told apart as in ECMA-48 and xterm's ctlseqs, in their 7-bit forms. Two things are ours, because
log text is hostile: a control string (OSC, DCS, APC, PM, SOS) ends at a line feed at the latest, so an
unterminated one hides one line and not the rest of the log; and the 8-bit C1 characters are dropped alone,
since in UTF-8 text they are usually the debris of a wrong decoding (U+009D in a broken closing quote would
open a string).

The carriage return, a simple rule: printable text that follows a bare one replaces what stands on that line;
one that only line ends or nothing follows does nothing.
"""

import functools
import html
import itertools
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LINE_LIMIT = 20_000

_STRING_END = re.compile(r"[\x07\x18\x1a\x1b\n\x9c]")
# Each token begins with one character of a set, for which alone `re` skips over plain text quickly (17 times
# faster than an alternation of whole tokens); the look-behinds then tell which one it was.
_TOKEN = re.compile(
    # C0 but \t, DEL, C1, bidirectional overrides and isolates, lone surrogates.
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff](?:"
    r"(?<=\x1b)(?:"
    r"\[(?P<sgr>[0-9;:]{0,128})m"
    r"|(?P<string>[\]PX^_][^\x07\x18\x1a\x1b\n\x9c]*[\x07\x18\x1a\x9c]?)"
    # What the next piece may complete.
    r"|(?P<partial>(?:\[[0-?]{0,128}[ -/]{0,8}|[ -/]{1,8})?\Z)"
    # Any other CSI, or a broken one.
    r"|\[[0-?]{0,128}[ -/]{0,8}[@-~]?"
    # Two-character and character-set sequences, a lone ESC.
    r"|[ -/]{0,8}[0-~]?"
    r")"
    r"|(?P<line_ends>(?<=\n)\n*)"
    r"|(?P<carriage_return>(?<=\r)\r*)"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*"
    r")"
)

# xterm's default palette (XTerm-col.ad); only distances between its colours matter here.
_PALETTE = (
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0),
    (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229),
    (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0),
    (92, 92, 255), (255, 0, 255), (0, 255, 255), (255, 255, 255),
)  # fmt: skip
_CUBE = (0, 95, 135, 175, 215, 255)


class _Style(NamedTuple):
    fg: int | None = None
    bg: int | None = None
    bold: bool = False
    dim: bool = False
    italic: bool = False
    underline: bool = False
    inverse: bool = False


_SWITCHES: dict[int, dict[str, bool]] = {
    1: {"bold": True},
    2: {"dim": True},
    3: {"italic": True},
    4: {"underline": True},
    7: {"inverse": True},
    21: {"underline": True},
    22: {"bold": False, "dim": False},
    23: {"italic": False},
    24: {"underline": False},
    27: {"inverse": False},
}

_Run = tuple[str, str]  # the classes, the raw text


@dataclass(frozen=True, slots=True)
class AnsiState:
    """What one piece of a log hands on to the next: colours, an unfinished sequence, the unfinished line.

    Begin a stream with `AnsiState(by_line=True)` to be given whole lines only: then a carriage return works
    across pieces and the result does not depend on where the log was cut. The line not ended yet is `rest()`,
    to be shown replaceably and to be added when the stream ends.
    """

    by_line: bool = False
    style: _Style = field(default=_Style(), repr=False)
    pending: str = field(default="", repr=False)
    in_string: bool = field(default=False, repr=False)
    returned: bool = field(default=False, repr=False)
    runs: tuple[_Run, ...] = field(default=(), repr=False)
    length: int = field(default=0, repr=False)
    told: int = field(default=0, repr=False)
    shown: bool = field(default=False, repr=False)

    def rest(self) -> str:
        """Return the HTML of the line held back so far; empty unless `by_line`."""
        return _render(self.runs, self.length - LINE_LIMIT - self.told)


def ansi_html(text: str, state: AnsiState | None = None) -> tuple[str, AnsiState]:
    """Render a piece of terminal output as HTML, and return the state to give with the next piece.

    Classes of the spans: `ansi-fg-0` to `-15`, `ansi-bg-0` to `-15` (256 and true colours: the nearest),
    `ansi-bold -dim -italic -underline -inverse`, and `ansi-cut` around "… N more characters" where a line
    passes 20,000. Spans are balanced within each line; everything outside them is escaped text. Linear in the
    text.

    Without `by_line` all text is given out at once. What has been given out cannot be taken back, so a
    carriage return over it begins a new line, and a line over the limit may say in several pieces how much is
    missing.
    """
    before = state or AnsiState()
    line = _Line(before, limit=LINE_LIMIT, markup=True)
    style, pending, in_string = _feed(text, before, line)
    if not before.by_line:
        line.show()
    after = AnsiState(
        by_line=before.by_line,
        style=style,
        pending=pending,
        in_string=in_string,
        returned=line.returned,
        runs=tuple(_merged(line.runs)),
        length=line.length,
        told=line.told,
        shown=line.shown,
    )
    return "".join(line.out), after


def plain(text: str) -> str:
    """Drop from a whole text what `ansi_html` drops, colours too; nothing is escaped and no line is cut."""
    state = AnsiState()
    line = _Line(state, limit=sys.maxsize, markup=False)
    _feed(text, state, line)
    line.show()
    return "".join(line.out)


class _Line:
    """The line being written, which a carriage return can still undo, and the output before it."""

    __slots__ = ("length", "limit", "markup", "out", "returned", "runs", "shown", "told")

    def __init__(self, state: AnsiState, *, limit: int, markup: bool) -> None:
        self.out: list[str] = []
        self.limit = limit
        self.markup = markup
        self.runs: list[_Run] = list(state.runs)
        self.length = state.length
        self.told = state.told
        self.shown = state.shown
        self.returned = state.returned

    def write(self, css: str, text: str) -> None:
        if self.returned:
            if self.shown:
                self.out.append("\n")
            self._begin()
        room = self.limit - self.length
        if room > 0:
            self.runs.append((css, text if len(text) <= room else text[:room]))
        self.length += len(text)

    def end(self, line_ends: str) -> None:
        self.show()
        self.out.append(line_ends)
        self._begin()

    def show(self) -> None:
        over = self.length - self.limit - self.told
        if self.runs or over > 0:
            self.out.append(_render(self.runs, over) if self.markup else "".join(text for _, text in self.runs))
            self.told += max(over, 0)
            self.shown = True
            self.runs = []

    def _begin(self) -> None:
        self.runs = []
        self.length = 0
        self.told = 0
        self.shown = False
        self.returned = False


def _feed(text: str, state: AnsiState, line: _Line) -> tuple[_Style, str, bool]:
    """Write `text` to the line; return style, unfinished sequence and whether a control string is open."""
    style, css = state.style, _css(state.style)
    text = state.pending + text
    at = 0
    if state.in_string:
        end = _STRING_END.search(text)
        if end is None:
            return style, "", True
        at = end.start() if end.group() in "\x1b\n" else end.end()
    for token in _TOKEN.finditer(text, at):
        start = token.start()
        if at < start:
            line.write(css, text[at:start])
        at = token.end()
        match token.lastgroup:
            case "sgr":
                style = _restyled(style, token["sgr"])
                css = _css(style)
            case "line_ends":
                line.end(token.group())
            case "carriage_return":
                line.returned = True
            case "string" if at == len(text) and text[-1] not in "\x07\x18\x1a\x9c":
                return style, "", True
            case "partial":
                return style, token.group(), False
    if at < len(text):
        line.write(css, text[at:])
    return style, "", False


def _merged(runs: Sequence[_Run]) -> list[_Run]:
    return [
        (css, "".join(text for _, text in group)) for css, group in itertools.groupby(runs, key=operator.itemgetter(0))
    ]


def _render(runs: Sequence[_Run], over: int) -> str:
    pieces = []
    for css, text in _merged(runs) if len(runs) > 1 else runs:
        escaped = html.escape(text)
        pieces.append(f'<span class="{css}">{escaped}</span>' if css else escaped)
    if over > 0:
        pieces.append(f'<span class="ansi-cut">… {over} more characters</span>')
    return "".join(pieces)


@functools.lru_cache(maxsize=512)
def _css(style: _Style) -> str:
    classes = []
    if style.fg is not None:
        classes.append(f"ansi-fg-{style.fg}")
    if style.bg is not None:
        classes.append(f"ansi-bg-{style.bg}")
    classes += [f"ansi-{name}" for name in style._fields[2:] if getattr(style, name)]
    return " ".join(classes)


@functools.lru_cache(maxsize=2048)
def _restyled(style: _Style, parameters: str) -> _Style:
    """Apply the parameters of one SGR sequence (ECMA-48 8.3.117, xterm ctlseqs "Character Attributes")."""
    rest = iter(parameters.split(";"))
    for parameter in rest:
        code, *operands = [int(number or 0) for number in parameter.split(":")]
        if code in {38, 48}:
            colour = _colour(operands or _following(rest))
            if colour is not None:
                style = style._replace(fg=colour) if code == 38 else style._replace(bg=colour)
        elif code == 4 and operands[:1] == [0]:
            style = style._replace(underline=False)
        else:
            style = _switched(style, code)
    return style


def _switched(style: _Style, code: int) -> _Style:
    if code == 0:
        return _Style()
    if code in _SWITCHES:
        return style._replace(**_SWITCHES[code])
    if code in {39, 49}:
        return style._replace(fg=None) if code == 39 else style._replace(bg=None)
    tens, ones = divmod(code, 10)
    if ones < 8 and tens in {3, 9}:
        return style._replace(fg=ones + (8 if tens == 9 else 0))
    if ones < 8 and tens in {4, 10}:
        return style._replace(bg=ones + (8 if tens == 10 else 0))
    return style


def _following(rest: Iterator[str]) -> list[int]:
    """Take the operands of a 38 or 48 written with semicolons; all that is left when its kind is unknown."""
    kind = next(rest, "")
    taken = itertools.islice(rest, {"5": 1, "2": 3}.get(kind))
    return [int(number) if number.isdecimal() else 0 for number in (kind, *taken)]


def _colour(operands: list[int]) -> int | None:
    """Map `5, n` or `2, (colour space,) r, g, b` onto the nearest of the 16; None for anything else."""
    match operands:
        case [5, n] if n < 16:
            return n
        case [5, n] if n < 232:
            return _nearest(_CUBE[(n - 16) // 36], _CUBE[(n - 16) // 6 % 6], _CUBE[(n - 16) % 6])
        case [5, n] if n < 256:
            return _nearest(*[8 + 10 * (n - 232)] * 3)
        case [2, r, g, b] | [2, _, r, g, b, *_] if max(r, g, b) < 256:
            return _nearest(r, g, b)
    return None


def _nearest(r: int, g: int, b: int) -> int:
    def distance(index: int) -> int:
        red, green, blue = _PALETTE[index]
        return (red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2

    return min(range(16), key=distance)
