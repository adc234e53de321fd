"""Log files read by offset, and terminal output made inert."""

import html
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.logs import (
    LINE_LIMIT,
    AnsiState,
    Chunk,
    ansi_html,
    count_lines,
    plain,
    read_from,
    rotation,
    tail_bytes,
    tail_lines,
)

pytestmark = pytest.mark.pure

SPAN = re.compile(r'<span class="ansi-[a-z0-9-]+(?: ansi-[a-z0-9-]+)*">|</span>')
INERT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")

FRAGMENTS = [
    *("\n", "\r", "\r\n", "\t", "\x1b", "\x1b[", "\x1b[0m", "\x1b[31m", "\x1b[1;48;5;200m"),
    *("\x1b[38;2;1;2;3m", "\x1b[38:5:", "\x1b[2K", "\x1b[?25l", "\x1b]8;;http://evil/\x1b\\"),
    *("\x1b]0;title\x07", "\x1b]", "\x1b\\", "\x1bP", "\x1b_", "\x1b(B", "\x1b(", "\x07", "\x18"),
    *("\x9b31m", "\x9d", "\x9c", "\u202e", "\u2066", "\ud800", "\x00", "m", "31", ";", "é", "😀"),
    *("<script>", "</span>", '<span class="ansi-bold">', "&lt;", '"', "word"),
]  # fmt: skip
terminal = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=25).map("".join)


@st.composite
def cut_up(draw: st.DrawFn, texts: st.SearchStrategy[str] = terminal) -> list[str]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@contextmanager
def file_of(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("log")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def text_of(markup: str) -> str:
    """Return what a reader sees; fails on unbalanced spans and on any tag that is not ours."""
    depth = 0
    for tag in SPAN.findall(markup):
        depth += -1 if tag == "</span>" else 1
        assert depth in {0, 1}
    assert depth == 0
    bare = SPAN.sub("", markup)
    assert "<" not in bare
    assert ">" not in bare
    text = html.unescape(bare)
    assert INERT.fullmatch(text)
    return text


def streamed(pieces: list[str], state: AnsiState | None) -> tuple[str, AnsiState]:
    out = []
    for piece in pieces:
        markup, state = ansi_html(piece, state)
        text_of(markup)
        out.append(markup)
    assert state is not None
    return "".join(out), state


@pytest.mark.parametrize(
    ("content", "tail", "text", "offset"),
    [
        (b"one\ntwo\nthree\n", 100, "one\ntwo\nthree\n", 0),
        (b"one\ntwo\nthree\n", 14, "one\ntwo\nthree\n", 0),
        (b"one\ntwo\nthree\n", 10, "two\nthree\n", 4),
        (b"one\ntwo\nthree\n", 9, "three\n", 8),
        (b"one\ntwo\nthree\n", 6, "three\n", 8),
        (b"one\ntwo\nthree\n", 3, "ee\n", 11),
        (b"one\ntwo", 2, "wo", 5),
        (b"one\ntwo", 0, "", 7),
        (b"", 10, "", 0),
        (b"\n", 0, "", 1),
    ],
)
def test_tail_bytes_drops_a_cut_line_only_if_something_remains(
    content: bytes, tail: int, text: str, offset: int
) -> None:
    with file_of(content) as fd:
        chunk = tail_bytes(fd, tail=tail)
    assert (chunk.text, chunk.offset, chunk.next_offset) == (text, offset, len(content))
    assert chunk.size == len(content)
    assert chunk.truncated is (offset > 0)


def test_a_tail_is_cut_between_characters() -> None:
    content = "ab😀cd".encode()
    with file_of(content) as fd:
        for tail in (3, 4, 5):
            chunk = tail_bytes(fd, tail=tail)
            assert (chunk.text, chunk.offset) == ("cd", 6)
        assert tail_bytes(fd, tail=6).text == "😀cd"


def test_an_unfinished_character_at_the_end_is_left_for_the_next_read() -> None:
    with file_of("hello é".encode()[:-1]) as fd:
        chunk = tail_bytes(fd, tail=100)
        assert (chunk.text, chunk.next_offset, chunk.size) == ("hello ", 6, 7)
        assert read_from(fd, offset=6).text == ""
        os.write(fd, "é".encode()[1:])
        assert read_from(fd, offset=chunk.next_offset).text == "é"


def test_broken_bytes_are_replaced() -> None:
    with file_of(b"a\xffb\x80\n") as fd:
        assert tail_bytes(fd, tail=100).text == "a\ufffdb\ufffd\n"


def test_nothing_before_the_head_is_read() -> None:
    with file_of(b"\0\0\0\0new\nlog\n") as fd:
        assert tail_bytes(fd, tail=100, head=4).text == "new\nlog\n"
        assert not tail_bytes(fd, tail=100, head=4).truncated
        assert tail_lines(fd, lines=100, head=4).text == "new\nlog\n"
        assert tail_lines(fd, lines=1, head=4).truncated
        chunk = read_from(fd, offset=1, head=4)
        assert (chunk.text, chunk.offset, chunk.truncated) == ("new\nlog\n", 4, True)
        assert tail_bytes(fd, tail=100, head=500).offset == 0, "that head was of an earlier file"


def test_a_path_is_read_unless_it_is_a_link_or_no_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"one\ntwo\n")
    (tmp_path / "link").symlink_to(log)
    os.mkfifo(tmp_path / "fifo")
    assert tail_bytes(log, tail=4).text == "two\n"
    assert count_lines(str(log)) == 2
    for name in ("link", "fifo", "missing", "."):
        with pytest.raises(OSError):
            tail_bytes(tmp_path / name, tail=4)


def test_the_position_of_the_descriptor_stays() -> None:
    with file_of(b"one\ntwo\n") as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        tail_bytes(fd, tail=4)
        tail_lines(fd, lines=1)
        read_from(fd, offset=0)
        count_lines(fd)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 3


@pytest.mark.parametrize("value", [-1, -100])
def test_a_negative_amount_is_refused(value: int) -> None:
    with file_of(b"x") as fd:
        with pytest.raises(ValueError):
            tail_bytes(fd, tail=value)
        with pytest.raises(ValueError):
            tail_lines(fd, lines=value)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "a", "é" * 40_000, "x" * 70_000]), max_size=8),
    st.booleans(),
    st.integers(0, 9),
)
def test_tail_lines_are_the_last_lines(rows: list[str], ended: bool, lines: int) -> None:
    text = "\n".join(rows) + ("\n" if ended else "")
    expected = "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
    with file_of(text.encode()) as fd:
        chunk = tail_lines(fd, lines=lines)
        assert chunk.text == expected
        assert chunk.truncated is (chunk.offset > 0)
        assert chunk.next_offset == chunk.size == len(text.encode())
        assert chunk.offset == chunk.size - len(expected.encode())


def test_tail_lines_reads_4_mib_at_most() -> None:
    with file_of(b"first\n" + b"x" * (5 * 1024 * 1024)) as fd:
        chunk = tail_lines(fd, lines=2)
    assert len(chunk.text) == 4 * 1024 * 1024
    assert chunk.truncated


def test_a_tail_reads_no_more_than_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    pread = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    with file_of(b"0123456789abcde\n" * 200_000) as fd:
        tail_lines(fd, lines=100)
        tail_bytes(fd, tail=1000)
    assert sum(read) == 64 * 1024 + 1001


@given(st.text(), st.integers(1, 12))
def test_consecutive_reads_add_up_to_the_file(text: str, limit: int) -> None:
    content = text.encode()
    offset, got = 0, []
    with file_of(content) as fd:
        while offset < len(content):
            chunk = read_from(fd, offset=offset, limit=limit)
            assert chunk.offset == offset
            assert offset < chunk.next_offset <= offset + max(limit, 4)
            assert not chunk.truncated
            got.append(chunk.text)
            offset = chunk.next_offset
    assert "".join(got) == text


@given(st.binary(), st.integers(1, 12))
def test_reads_of_any_bytes_advance_and_add_up(content: bytes, limit: int) -> None:
    offset, got = 0, []
    with file_of(content + b"\n") as fd:
        while offset < len(content) + 1:
            chunk = read_from(fd, offset=offset, limit=limit)
            assert chunk.next_offset > offset
            got.append(chunk.text)
            offset = chunk.next_offset
    assert "".join(got) == (content + b"\n").decode(errors="replace")


def test_a_rewritten_file_is_read_from_its_head() -> None:
    with file_of(b"short\n") as fd:
        chunk = read_from(fd, offset=1000)
        assert (chunk.text, chunk.offset, chunk.truncated) == ("short\n", 0, True)
        assert read_from(fd, offset=6).text == ""
        assert not read_from(fd, offset=6).truncated
        assert read_from(fd, offset=-1).truncated


def test_a_negative_offset_is_a_tail() -> None:
    with file_of(b"one\ntwo\nthree\n") as fd:
        for offset in (-6, -8, -100, -(1 << 62)):
            assert read_from(fd, offset=offset) == tail_bytes(fd, tail=min(-offset, 100))
        assert read_from(fd, offset=-100, head=4) == tail_bytes(fd, tail=100, head=4)
        chunk = read_from(fd, offset=-11, limit=4)
        assert (chunk.text, chunk.offset, chunk.next_offset, chunk.truncated) == ("two\n", 4, 8, True)


@pytest.fixture
def punched(tmp_path: Path) -> Iterator[int]:
    """A log of 1,000 lines of 16 bytes whose first 8192 bytes were punched out; line 512 begins there."""
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(b"line %10d\n" % n for n in range(1000)))
    fd = os.open(path, os.O_RDWR)
    try:
        rotation.punch(fd, 8192)
        yield fd
    finally:
        os.close(fd)


def test_a_hole_that_the_head_does_not_tell_of_is_skipped(punched: int) -> None:
    rest = "".join(f"line {n:10}\n" for n in range(513, 1000))
    start = 513 * 16
    assert os.pread(punched, 3, 8189) == b"\0\0\0"
    for head in (0, 1, 100, 8191):
        for chunk in (
            tail_bytes(punched, tail=20_000, head=head),
            tail_lines(punched, lines=2000, head=head),
            read_from(punched, offset=head, head=head),
            read_from(punched, offset=0, head=head),
            read_from(punched, offset=8191, head=head),
            read_from(punched, offset=-20_000, head=head),
        ):
            assert (chunk.offset, chunk.text, chunk.next_offset) == (start, rest, 16_000)
    assert read_from(punched, offset=0).truncated
    assert read_from(punched, offset=start).text == rest
    assert not read_from(punched, offset=start).truncated
    assert tail_bytes(punched, tail=20_000, head=8192).text == f"line {512:10}\n" + rest, "what is known is believed"
    assert count_lines(punched, head=8192) == 488
    assert count_lines(punched, head=9600) == 400
    assert count_lines(punched, start_offset=9600, head=8192) == 400
    assert read_from(punched, offset=16_000).text == ""
    os.ftruncate(punched, 8192)
    assert tail_bytes(punched, tail=100).text == ""
    assert read_from(punched, offset=0).next_offset == 8192
    assert not read_from(punched, offset=8192).truncated


def test_behind_a_hole_without_line_ends_a_character_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" + "😀".encode() * 4000)
    fd = os.open(path, os.O_RDWR)
    try:
        rotation.punch(fd, 4096)
        assert read_from(fd, offset=0).text == "😀" * (4000 - 1024)
    finally:
        os.close(fd)


@pytest.fixture
def punched_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A log of which two pages are punched out just before each read."""
    path = tmp_path / "a.log"
    path.write_bytes(b"0123456789abcde\n" * 1000)
    pread = os.pread

    def late(fd: int, length: int, offset: int) -> bytes:
        rotation.punch(fd, 8192)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", late)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    "read",
    [
        lambda fd: tail_bytes(fd, tail=20_000),
        lambda fd: tail_lines(fd, lines=2000),
        lambda fd: read_from(fd, offset=16),
        lambda fd: read_from(fd, offset=-20_000),
    ],
)
def test_what_is_punched_out_while_it_is_read_is_not_shown_as_zeros(
    read: Callable[[int], Chunk], punched_meanwhile: int
) -> None:
    chunk = read(punched_meanwhile)
    assert chunk.text == "0123456789abcde\n" * (1000 - 513)
    assert chunk.offset == 513 * 16


def test_what_was_punched_out_while_it_was_read_is_told(punched_meanwhile: int) -> None:
    assert read_from(punched_meanwhile, offset=0).truncated
    assert not read_from(punched_meanwhile, offset=513 * 16).truncated


def test_lines_are_counted_incrementally() -> None:
    with file_of(b"a\nb\r\nc" + b"\n" * 100_000) as fd:
        assert count_lines(fd) == 100_002
        assert count_lines(fd, end=3) == 1
        assert count_lines(fd, start_offset=3) == 100_001
        assert count_lines(fd, start_offset=3, end=10**9) == 100_001
        assert count_lines(fd, start_offset=10**9) == 0


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("plain & <b>", "plain &amp; &lt;b&gt;"),
        ("\x1b[31mred\x1b[0m not", '<span class="ansi-fg-1">red</span> not'),
        ("\x1b[1;31mA\x1b[mB", '<span class="ansi-fg-1 ansi-bold">A</span>B'),
        ("\x1b[97;104mA\x1b[39mB\x1b[49mC", None),
        ("\x1b[31mA\nB", '<span class="ansi-fg-1">A</span>\n<span class="ansi-fg-1">B</span>'),
        ("\x1b[31mA\x1b[31mB", '<span class="ansi-fg-1">AB</span>'),
        ("\x1b[2;3;4;7mA", '<span class="ansi-dim ansi-italic ansi-underline ansi-inverse">A</span>'),
        ("\x1b[1;2;3;4;7m\x1b[22;23;24;27mA", "A"),
        ("\x1b[4:3mA\x1b[4:0mB", '<span class="ansi-underline">A</span>B'),
        ("\x1b[38;5;9mA", '<span class="ansi-fg-9">A</span>'),
        ("\x1b[38;5;196mA", '<span class="ansi-fg-9">A</span>'),
        ("\x1b[48;5;232mA", '<span class="ansi-bg-0">A</span>'),
        ("\x1b[38;5;255mA", '<span class="ansi-fg-7">A</span>'),
        ("\x1b[38;2;254;255;250mA", '<span class="ansi-fg-15">A</span>'),
        ("\x1b[38:2::0:0:230mA", '<span class="ansi-fg-4">A</span>'),
        ("\x1b[38:2:0:0:230;1mA", '<span class="ansi-fg-4 ansi-bold">A</span>'),
        ("\x1b[38;5;1;1mA", '<span class="ansi-fg-1 ansi-bold">A</span>'),
        ("\x1b[38;5;999mA\x1b[38;5mB\x1b[38;9;1;1mC\x1b[38mD\x1b[38;2;256;0;0mE", "ABCDE"),
        ("\x1b[38;5;1:2mA\x1b[0;8;99;12345mB", '<span class="ansi-fg-0">A</span>B'),
        ("\x1b[>4;2mA\x1b[?4mB", "AB"),
    ],
)
def test_colours_become_spans(text: str, markup: str | None) -> None:
    if markup is None:
        markup = '<span class="ansi-fg-15 ansi-bg-12">A</span><span class="ansi-bg-12">B</span>C'  # bright pair
    assert ansi_html(text)[0] == markup


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]8;;http://evil/\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x1b]8;;javascript:alert(1)\x07click\x1b]8;;\x07", "click"),
        ("\x1b]0;title\x07A", "A"),
        ("\x1b]0;never ended\nB", "\nB"),
        ("\x1b]0;cut by\x1b[1mB", "B"),
        ("A\x1b]52;c;AAAA", "A"),
        ("\x1bP1$r0m\x1b\\A\x1b_apc\x1b\\B\x1b^pm\x1b\\C\x1bXsos\x1b\\D", "ABCD"),
        ("\x1b[2J\x1b[10;10HA\x1b[?1049hB\x1b[!pC\x1b[1 qD", "ABCD"),
        ("\x1b(BA\x1b7B\x1b=C\x1bcD", "ABCD"),
        ("A\x1b", "A"),
        ("A\x1b[31", "A"),
        ("A\x1b\x1b[0mB", "AB"),
        ("A\x1béB", "AéB"),
        ("A\x1b[3\né", "A\né"),
        ("A\x00\x07\x08\x0b\x0c\x7f\x85\x9b1mB", "A1mB"),
        ("a\u202egnp.exe\u202c \u2066x\u2069", "agnp.exe x"),
        ("\ud83d", ""),
        ("tab\there", "tab\there"),
        ("\x1b[" + "1" * 129 + "mA", "1mA"),
    ],
)
def test_other_sequences_vanish(text: str, shown: str) -> None:
    assert text_of(ansi_html(text)[0]) == shown
    assert plain(text) == shown


def test_markup_in_a_log_is_text() -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=\"x\">\x1b[31m</span><a href='x'>"
    markup = ansi_html(hostile)[0]
    assert "<script" not in markup
    assert text_of(markup) == plain(hostile)
    assert '"x"' not in SPAN.sub("", markup)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\r\n", "a\nb\n"),
        ("a\r\r\nb", "a\nb"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("10%\r50%", "50%"),
        ("50%\r", "50%"),
        ("long line\r\x1b[Kx\n", "x\n"),
        ("kept\n10%\r20%\nalso", "kept\n20%\nalso"),
        ("a\r\n\rb", "a\nb"),
        ("a\r\x1b[31m\nb", "a\nb"),
    ],
)
def test_a_carriage_return_keeps_what_follows_it(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert text_of(ansi_html(text)[0]) == shown
    markup, state = streamed(list(text), AnsiState(by_line=True))
    assert text_of(markup + state.rest()) == shown


def test_what_was_given_out_is_not_taken_back() -> None:
    markup, _ = streamed(["10%", "\r20%", "\r", "30%\r40%\n", "x\r", "\ny"], None)
    assert text_of(markup) == "10%\n20%\n40%\nx\ny"


def test_by_line_holds_the_unfinished_line_to_be_shown_replaceably() -> None:
    markup, state = ansi_html("done\n\x1b[32m10%", AnsiState(by_line=True))
    assert (markup, state.rest()) == ("done\n", '<span class="ansi-fg-2">10%</span>')
    markup, state = ansi_html("\r20%", state)
    assert (markup, state.rest()) == ("", '<span class="ansi-fg-2">20%</span>')
    markup, state = ansi_html("\r\n", state)
    assert (markup, state.rest()) == ('<span class="ansi-fg-2">20%</span>\n', "")


def test_a_long_line_is_cut_and_says_so() -> None:
    exact = "x" * LINE_LIMIT
    assert ansi_html(exact)[0] == exact
    note = '<span class="ansi-cut">… 5 more characters</span>'
    assert ansi_html(exact + "\x1b[31mabcde\nnext")[0] == f'{exact}{note}\n<span class="ansi-fg-1">next</span>'
    assert plain(exact + "abcde") == exact + "abcde"
    assert ansi_html(exact + "abcde\rshort")[0] == "short"
    markup, state = streamed([exact[:-1], "xab", "cde", "", "\nnext"], AnsiState(by_line=True))
    assert markup + state.rest() == f"{exact}{note}\nnext"
    markup, _ = streamed([exact[:-1], "xab", "cde", "", "\nnext"], None)
    assert text_of(markup) == f"{exact}… 2 more characters… 3 more characters\nnext"


def test_a_held_line_stays_small() -> None:
    state = AnsiState(by_line=True)
    for _ in range(50):
        markup, state = ansi_html("\x1b[1mx" * 1000 + "\x1b]" + "y" * 1000 + "\x07", state)
        assert markup == ""
    assert sum(len(text) for _, text in state.runs) == LINE_LIMIT
    assert state.rest().endswith("… 30000 more characters</span>")


@given(cut_up())
def test_whole_lines_do_not_depend_on_the_cuts(pieces: list[str]) -> None:
    markup, state = streamed(pieces, AnsiState(by_line=True))
    assert markup + state.rest() == ansi_html("".join(pieces))[0]


@given(cut_up(terminal.map(lambda text: re.sub(r"\r+(?!\r*\n)", "", text))))
def test_text_given_out_at_once_does_not_depend_on_the_cuts(pieces: list[str]) -> None:
    markup, _ = streamed(pieces, None)
    assert text_of(markup) == plain("".join(pieces))


@given(cut_up())
def test_whatever_comes_the_spans_are_balanced_and_ours(pieces: list[str]) -> None:
    markup, state = streamed(pieces, None)
    text_of(markup)
    assert state.rest() == ""


@given(terminal)
def test_plain_is_the_text_of_the_markup_and_leaves_nothing_to_drop(text: str) -> None:
    shown = plain(text)
    assert shown == text_of(ansi_html(text)[0])
    assert plain(shown) == shown


@pytest.mark.parametrize(
    "unit",
    [
        *("x", "<", "\x1b", "\x1b[", "\x1b[31mx", "\x1b[1;", "\x1b]", "\x1b]x\x07", "\x1b ", "\x00a"),
        *("\r", "\rx", "\n", "x\n"),
    ],
)
def test_a_megabyte_of_anything_takes_no_more_than_linear_time(unit: str) -> None:
    """Ratios, not seconds: eight times the text may take at most 40 times as long, on however slow a machine."""

    def took(length: int) -> float:
        text = (unit * length)[:length]
        times = []
        for _ in range(3):
            begin = time.process_time()
            ansi_html(text)
            times.append(time.process_time() - begin)
        return min(times)

    assert took(1_000_000) < 40 * max(took(125_000), 0.002)
