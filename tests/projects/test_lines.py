"""Lines: any bytes in, no exception, every whole line found where it is."""

import hashlib
import json
import os
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import lines
from projects.lines import reading

pytestmark = pytest.mark.pure
# A busy machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
objects = st.dictionaries(st.text(max_size=20), values, max_size=3)


def read(content: bytes, **options) -> list[lines.Line]:
    """Read through a file, as the importer does."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        found = list(lines.read(file.fileno(), **options))
        file.seek(0)
        assert file.read() == content
    return found


def only(content: bytes) -> lines.Line:
    [line] = read(content)
    return line


@CALM
@given(st.binary(max_size=400) | st.text('{}[]"\\:,\n\r\0 1eE-ux\u2028\ud7ff\ufeff', max_size=200).map(str.encode))
def test_any_bytes_are_lines_in_their_places(content):
    found = read(content)
    pieces = content.split(b"\n")
    assert found == list(lines.read_bytes(content))
    for line in found:
        text = pieces[line.number - 1]
        assert content[line.offset : line.offset + len(text)] == text
        assert line.offset == sum(len(piece) + 1 for piece in pieces[: line.number - 1])
        assert line.length == len(text) + line.terminated
        assert line.terminated == (line.number < len(pieces))
        assert line.sha256 == hashlib.sha256(text).hexdigest()
        assert (line.value is None) == bool(line.problem)
    shown = {line.number for line in found}
    for number, text in enumerate(pieces, 1):
        blank = not text.removeprefix(lines.BOM).strip() if number == 1 else not text.strip()
        assert (number in shown) == (not blank)


@settings(CALM, max_examples=40)
@given(
    st.lists(st.tuples(objects, st.sampled_from([b"", b"{", b"\xff", b"\0", b"[]", b"  ", b'{"a":', b"7"])), max_size=8)
)
def test_every_intact_line_is_found_between_any_others(pairs):
    content = b"".join(lines.serialise(value) + noise + b"\n" for value, noise in pairs)
    assert [line.value for line in read(content) if line.value is not None] == [value for value, _ in pairs]


@CALM
@given(objects)
def test_what_is_written_is_one_line_and_comes_back(value):
    line = lines.serialise(value)
    assert len(line.decode().splitlines()) == 1
    assert lines.parse(line[:-1]) == (value, "")


@settings(CALM, max_examples=30)
@given(st.integers(1, 9), st.lists(objects, min_size=1, max_size=20))
def test_chunks_of_any_size_say_the_same(size, rows):
    content = b"".join(map(lines.serialise, rows)) + b'{"torn'
    whole = list(lines.read_bytes(content))
    pieces = (content[place : place + size] for place in range(0, len(content), size))
    assert list(reading._lines(pieces, lines.sound, 0, 0)) == whole


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{", "json"),
        (b"nonsense", "json"),
        (b"[1]", "shape"),
        (b"7", "shape"),
        (b'"text"', "shape"),
        (b"\xff{}", "utf8"),
        (b'{"a":"\xed\xa0\x80"}', "utf8"),
        (b'{"a":"\0"}', "nul"),
        (b"\0" * 4096, "nul"),
        (b"[" * 100_000, "json"),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "shape"),
        (b'{"a":' + b"9" * 5000 + b"}", "json"),
        (b'{"a":18446744073709551616}', "json"),
        (b'{"a":-9223372036854775809}', "json"),
        (b"{} {}", "json"),
    ],
)
def test_what_is_no_event(text, problem):
    line = only(text + b"\n")
    assert (line.problem, line.value) == (problem, None)
    told = line.malformed()
    assert set(told) == {"line", "offset", "raw", "sha256", "kind"}
    assert told["raw"].isascii()
    assert told["raw"].isprintable()
    assert len(told["raw"]) <= 500
    assert only(text).problem == "torn"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"\u2028\u2029\u0085"}'.encode(),
        b'{"a":"\\ud800"}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":18446744073709551615}',
        b'{"a":"[[[[' + b"[" * 300 + b'"}',
        b'{"a":"99999999999999999999999"}',
        b' \t{"a":1}\r',
    ],
)
def test_what_is_one_although_it_looks_odd(text):
    assert only(text + b"\n").problem == ""
    assert only(text).terminated is False


def test_a_mark_of_byte_order_is_ignored_on_line_1_alone():
    first, second = read(b'\xef\xbb\xbf{"a":1}\n\xef\xbb\xbf{"a":2}\n')
    assert (first.value, first.offset, first.length) == ({"a": 1}, 0, 11)
    assert (second.problem, second.offset) == ("json", 11)


def test_a_line_over_the_cap_is_passed_over_in_pieces():
    long = b'{"a":"' + b"x" * lines.MAX_LINE + b'"}'
    first, second = read(long + b'\n{"b":2}\n')
    assert (first.problem, first.length, first.sha256) == ("oversize", len(long) + 1, hashlib.sha256(long).hexdigest())
    assert len(first.text) == 500
    assert (second.value, second.number, second.offset) == ({"b": 2}, 2, len(long) + 1)
    assert read(long)[0].problem == "torn"


def test_the_cap_is_the_same_in_both_directions():
    record = {"a": "x" * (lines.MAX_LINE - 9)}
    line = lines.serialise(record)
    assert len(line) == lines.MAX_LINE
    assert only(line).value == record
    with pytest.raises(ValueError, match="over the cap"):
        lines.serialise({"a": "x" * (lines.MAX_LINE - 8)})


def test_reading_goes_on_from_anywhere():
    content = b'{"a":1}\n{"b":2}\n{"c":3}\n'
    [line] = read(content, start=16, line=2)
    assert (line.number, line.offset, line.value) == (3, 16, {"c": 3})


def test_a_check_of_ones_own_says_what_is_wrong():
    found = read(b'{"a":1}\n{"b":2}\n', check=lambda value: "" if "a" in value else "shape")
    assert [line.problem for line in found] == ["", "shape"]


class TestMending:
    def test_what_was_made_read_only_stays_so_even_for_root(self, tmp_path):
        path = tmp_path / "a.jsonl"
        lines.append_line(path, {"a": 1})
        path.chmod(0o444)
        with pytest.raises(PermissionError):
            lines.append_line(path, {"a": 2})
        path.chmod(0o644)
        tmp_path.chmod(0o555)
        try:
            with pytest.raises(PermissionError):
                lines.append_line(tmp_path / "b.jsonl", {"a": 1})
        finally:
            tmp_path.chmod(0o755)
        assert path.read_bytes() == b'{"a":1}\n'

    def test_torn_tails_have_their_limit(self, tmp_path, monkeypatch):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"{")
        opened = os.open

        def taken(name, flags, *args, **options):
            if ".torn-" in str(name):
                raise FileExistsError
            return opened(name, flags, *args, **options)

        monkeypatch.setattr(os, "open", taken)
        with pytest.raises(OSError, match="too many torn tails"):
            lines.append_line(path, {"a": 1})
        assert path.read_bytes() == b"{"

    @CALM
    @given(content=st.binary(max_size=200), value=objects)
    def test_after_any_bytes_an_append_is_read_again(self, tmp_path_factory, content, value):
        path = tmp_path_factory.mktemp("any") / "a.jsonl"
        path.write_bytes(content)
        line = lines.append_line(path, value)
        found = list(lines.read_bytes(path.read_bytes()))
        assert found[-1].value == json.loads(line)
        assert path.read_bytes().endswith(b"\n" + line) or path.read_bytes() == line
