"""Reopening a story in prd.json: only the touched values differ, on disk nothing is lost, whatever happens."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projects import ralph
from projects.ralph import StoryState, Unreadable
from projects.rollback import document
from projects.rollback.document import Changed, reopen, reopen_on_disk

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
PRD = Path("scripts/ralph/prd.json")
BOM = b"\xef\xbb\xbf"

SEED = """{
  "project": "Demo",
  "branchName": "ralph/demo",
  "userStories": [
    {
      "id": "US-001",
      "title": "First",
      "passes": true,
      "notes": ""
    },
    {
      "id": "US-002",
      "title": "Zweite Größe \\u2713 ✓",
      "failed": false,
      "priority": 2.0,
      "passes": true,
      "retries": 3,
      "blocked": false,
      "blockedBy": ["US-001"],
      "failureReason": "it {broke} \\"twice\\"",
      "notes": "passes: true"
    }
  ]
}
"""
SEED_AFTER = """{
  "project": "Demo",
  "branchName": "ralph/demo",
  "userStories": [
    {
      "id": "US-001",
      "title": "First",
      "passes": true,
      "notes": ""
    },
    {
      "id": "US-002",
      "title": "Zweite Größe \\u2713 ✓",
      "priority": 2.0,
      "passes": false,
      "retries": 0,
      "blockedBy": ["US-001"],
      "notes": "passes: true"
    }
  ]
}
"""


def reopened(text, story="A"):
    after = reopen(text.encode(), story)
    found = next(each for each in ralph.parse_prd(after).stories if each.id == story)
    assert (found.state, found.retries, found.failure_reason) == (StoryState.PENDING, 0, "")
    assert reopen(after, story) == after
    return after.decode()


class TestWholeDocument:
    def test_of_the_seed_format(self):
        assert reopened(SEED, "US-002") == SEED_AFTER

    @pytest.mark.parametrize(
        "dressed",
        [
            lambda text: BOM + text.encode(),
            lambda text: text.replace("\n", "\r\n").encode(),
            lambda text: BOM + text.replace("\n", "\r\n").encode(),
            lambda text: text.replace("  ", "\t").encode(),
            lambda text: text.replace("\n", "\r").encode(),
            lambda text: text.rstrip("\n").encode(),
            lambda text: b"\n\n " + text.encode() + b"\n \n",
            lambda text: text.replace('": ', '" :\t').encode(),
            lambda text: json.dumps(json.loads(text)).encode(),
            lambda text: json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False).encode(),
            lambda text: json.dumps(json.loads(text), indent=4).encode(),
        ],
        ids=["bom", "crlf", "bom-crlf", "tabs", "cr", "no-newline", "space", "colons", "one-line", "compact", "indent"],
    )
    def test_its_dress_is_kept(self, dressed):
        assert reopen(dressed(SEED), "US-002") == dressed(SEED_AFTER)

    @pytest.mark.parametrize(
        ("story", "shape"),
        [
            ("A", '{"userStories": [X]}'),
            ("A", '{"user_stories": [null, X, 3]}'),
            ("A", '{"stories": [{"id": "B", "passes": true}, X]}'),
            ("A", '{"tasks": [X]}'),
            ("A", '{"items": [X]}'),
            ("A", '{"userStories": [], "items": [X]}'),
            ("A", "[X]"),
            ("A", '[{"id": "B", "passes": true}, X, "rest"]'),
            ("k", '{"stories": {"j": {"passes": true}, "k": Y}}'),
            ("k", '{"project": "p", "k": Y, "meta": {"passed": 1}}'),
            ("A", '{"milestones": [{"name": "M", "stories": [X]}]}'),
            ("A", '{"phases": {"p": [X]}}'),
            ("A", '{"epics": [{"id": 7, "items": {"z": {"title": "z"}, "k": X}}, {"A": {"title": "B"}}]}'),
            ("k", '{"epics": [{"title": "E", "k": Y}]}'),
            ("A", '{"stories": [{"id": "B", "passes": true}], "stories": [X]}'),
            ("k", '{"stories": {"k": {"title": "twin", "passes": true}, "b": {"passes": true}, "k": Y}}'),
            ("A-2", '{"stories": [{"id": "A", "passes": true}, X, {"id": "A", "passes": true}]}'),
            ("7", '{"stories": [{"id": 7, "passes": true}]}'.replace("true", "TRUE")),
            (f"story-2-{hashlib.sha256(b't').hexdigest()[:6]}", '{"stories": [{"id": "A"}, Y, {"passes": true}]}'),
            ("\u00e4", r'{"stories": {"j": {"passes": true}, "\u00e4": Y}}'),
            ("\U0001f600", r'{"stories": {"\ud83d\ude00": Y}}'),
            ("k\ufffd", '{"stories": {"a\\u0000": {"passes": true}, "\\ud800b": {"passes": true}, "k\ufffd": Y}}'),
            ("k", '{"stories": {"\\u0000": {"passes": true}, "\\ud800": {"passes": true}, "k": Y}}'),
            ("A", '{"big": 123456789012345678901234567890, "n": 1e999, "stories": [X], "m": %s}' % ("9" * 5000)),
            ("A", '{"deep": %s, "stories": [X]}' % ("[" * 48 + "]" * 48)),
            ("A", '{"quotes": "\\"[{\\\\", "stories": [X], "}": "]"}'),
        ],
    )
    def test_of_every_shape(self, story, shape):
        before = {"X": '{"id": "A", "passes": true, "title": "t"}', "Y": '{"title": "t", "passes": true}'}
        after = {key: text.replace("true", "false") for key, text in before.items()}
        texts = []
        for values in (before, after):
            text = shape
            for key, value in values.items():
                text = text.replace(key, value)
            texts.append(text.replace("TRUE", "true" if values is before else "false"))
        assert reopened(texts[0], story) == texts[1]

    @pytest.mark.parametrize("story", ["B", "", "a", "A ", "\ud800", "x" * 1000])
    def test_without_such_a_story_is_refused(self, story):
        with pytest.raises(ValueError, match="has no story"):
            reopen(b'{"stories": [{"id": "A", "passes": true}]}', story)

    @pytest.mark.parametrize(
        "junk", [b"", b"{", b"\xff", b"null", b"NaN", b"[" * 60, b" " * (ralph.MAX_BYTES + 1), BOM + BOM + b"[]"]
    )
    def test_that_cannot_be_read_is_refused(self, junk):
        with pytest.raises(ValueError, match="cannot be read"):
            reopen(junk, "A")

    def test_that_would_grow_beyond_the_limit_is_refused(self):
        text = '{"stories": [{"id": "A", "status": "done"}], "x": "%s"}'
        full = (text % ("x" * (ralph.MAX_BYTES - len(text) + 2))).encode()
        assert len(full) == ralph.MAX_BYTES
        with pytest.raises(ValueError, match="larger than"):
            reopen(full, "A")

    @pytest.mark.parametrize("twin", ['"failed":1', '"retries":2', '"status":"done"', '"x":[]'])
    def test_with_endless_twins_is_refused(self, twin):
        before = f'[{{"id":"A","passes":true{f",{twin}" * 20_000}}}]'
        with pytest.raises(ValueError, match="more than 20000 members"):
            reopen(before.encode(), "A")

    def test_the_last_of_5000_stories(self):
        stories = [{"id": f"US-{n}", "title": f"T {n}", "status": "done", "passes": True} for n in range(5000)]
        before = json.dumps({"userStories": stories}, indent=2)
        head, found, tail = before.rpartition('"status": "done",\n      "passes": true')
        assert found
        assert reopened(before, "US-4999") == f'{head}"status": "pending",\n      "passes": false{tail}'

    @pytest.mark.parametrize(
        ("harm", "why"),
        [
            (lambda text: text.replace("1.50", "1.5"), "changing more"),
            (lambda text: text.replace('"x": 1, "x": 2', '"x": 2'), "changing more"),
            (lambda text: text.replace('"note": 1', '"note": 2'), "changing more"),
            (lambda text: text.replace("[]", "{}"), "changing more"),
            (lambda text: text.replace('"B", "passes": true', '"B", "passes": false'), "changing more"),
            (lambda text: text.replace('"A", "passes": false', '"A", "passes": true'), "cannot be reopened"),
            (lambda text: text.replace("}", "", 1), "cannot be read"),
        ],
    )
    def test_an_edit_that_goes_wrong_is_noticed(self, monkeypatch, harm, why):
        before = '{"n": 1.50, "x": 1, "x": 2, "y": [], "stories": [%s, {"id": "B", "passes": true}]}'
        before %= '{"id": "A", "passes": true, "note": 1}'
        assert reopened(before) == before.replace("true", "false", 1)
        right = document._apply
        monkeypatch.setattr(document, "_apply", lambda text, edits: harm(right(text, edits)))
        with pytest.raises(ValueError, match=why):
            reopen(before.encode(), "A")

    @pytest.mark.parametrize("depth", [1, 45])
    def test_a_full_stack_is_no_crash(self, depth):
        before = b'{"stories": [{"id": "A", "passes": true, "x": %s}]}' % (b"[" * depth + b"]" * depth)

        def at_depth(left):
            if left:
                return at_depth(left - 1)
            try:
                return reopen(before, "A")
            except ValueError as error:
                return str(error)

        here = frames()
        found = {at_depth(sys.getrecursionlimit() - here - margin) for margin in range(10, 120)}
        assert found - {before.replace(b"true", b"false")} <= {
            "The prd.json cannot be read: the document is nested too deeply to be read here.",
            "The prd.json is nested too deeply to be edited here.",
        }


def frames():
    frame, found = sys._getframe(), 0
    while frame:
        frame, found = frame.f_back, found + 1
    return found


STORY_TABLE = [
    # What says that it has passed, in every spelling.
    ('{"id":"A","passes":true}', '{"id":"A","passes":false}'),
    ('{"id":"A","passed":true}', '{"id":"A","passed":false}'),
    ('{"id":"A","passes":true,"done":true}', '{"id":"A","passes":false,"done":false}'),
    ('{"id":"A","passes":true,"completed":"yes"}', '{"id":"A","passes":false,"completed":"no"}'),
    ('{"id":"A","passes":true,"completed":"2026-01-02"}', '{"id":"A","passes":false,"completed":"2026-01-02"}'),
    ('{"id":"A","passes":"true"}', '{"id":"A","passes":"false"}'),
    ('{"id":"A","passes":" True "}', '{"id":"A","passes":"False"}'),
    ('{"id":"A","passes":"TRUE"}', '{"id":"A","passes":"FALSE"}'),
    ('{"id":"A","passes":"yes"}', '{"id":"A","passes":"no"}'),
    ('{"id":"A","passes":"YES"}', '{"id":"A","passes":"NO"}'),
    ('{"id":"A","passes":"1"}', '{"id":"A","passes":"0"}'),
    ('{"id":"A","passes":1}', '{"id":"A","passes":0}'),
    ('{"id":"A","passes":1.0}', '{"id":"A","passes":0.0}'),
    ('{"id":"A","passes":1e0}', '{"id":"A","passes":0}'),
    ('{"id":"A","passes":10e-1}', '{"id":"A","passes":0}'),
    (r'{"id":"A","p\u0061sses":"tru\u0065"}', r'{"id":"A","p\u0061sses":"false"}'),
    ('{"id":"A","passes":"","passed":true}', '{"id":"A","passes":"","passed":false}'),
    ('{"id":"A","passes":false,"passes":true}', '{"id":"A","passes":false,"passes":false}'),
    ('{"id":"A","passes":true,"passes":true}', '{"id":"A","passes":false,"passes":false}'),
    ('{"id":"A","x":1,"passes":true,"x":{"passes":true}}', '{"id":"A","x":1,"passes":false,"x":{"passes":true}}'),
    # The status.
    ('{"id":"A","status":"done"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"Completed"}', '{"id":"A","status":"Pending"}'),
    ('{"id":"A","status":"PASSED"}', '{"id":"A","status":"PENDING"}'),
    ('{"id":"A","status":"complete"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"failed"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"blocked"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"in_progress"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"In Progress"}', '{"id":"A","status":"Pending"}'),
    ('{"id":"A","status":"doing"}', '{"id":"A","status":"pending"}'),
    ('{"id":"A","status":"todo","passes":true}', '{"id":"A","status":"todo","passes":false}'),
    ('{"id":"A","status":"shipped","passes":true}', '{"id":"A","status":"shipped","passes":false}'),
    ('{"id":"A","status":["done"],"passes":true}', '{"id":"A","status":["done"],"passes":false}'),
    # What is taken out, wherever it stands.
    ('{"failed":true,"id":"A"}', '{"id":"A"}'),
    ('{"failed":1,"blocked":"yes","id":"A"}', '{"id":"A"}'),
    ('{"id":"A","blocked":true}', '{"id":"A"}'),
    ('{"id":"A","blocked":true,"x":1}', '{"id":"A","x":1}'),
    ('{"id":"A","failureReason":"why"}', '{"id":"A"}'),
    ('{"id":"A","failure_reason":["why"],"x":1}', '{"id":"A","x":1}'),
    ('{"id":"A","failureReason":{"a":1}}', '{"id":"A"}'),
    ('{"id":"A","failed":true,"x":1,"failed":true}', '{"id":"A","x":1}'),
    ('{"id":"A","failed":false,"passes":true,"blocked":null}', '{"id":"A","passes":false}'),
    ('{"id":"A", "failed": true , "x":1}', '{"id":"A" , "x":1}'),
    ('{ "failed": true , "id":"A" }', '{ "id":"A" }'),
    ('{"id":"A","blockedBy":["B"],"blocked":true,"failedAt":1}', '{"id":"A","blockedBy":["B"],"failedAt":1}'),
    ('{\n  "id": "A"\n, "failed": true\n, "x": 1\n}', '{\n  "id": "A"\n, "x": 1\n}'),
    # The retries, only where there are any.
    ('{"id":"A","retries":2}', '{"id":"A","retries":0}'),
    ('{"id":"A","retryCount":2.5}', '{"id":"A","retryCount":0}'),
    ('{"id":"A","retry_count":"2"}', '{"id":"A","retry_count":"0"}'),
    ('{"id":"A","retries":-1}', '{"id":"A","retries":0}'),
    ('{"id":"A","retries":"many"}', '{"id":"A","retries":"0"}'),
    ('{"id":"A","retries":true}', '{"id":"A","retries":0}'),
    ('{"id":"A","retries":[3]}', '{"id":"A","retries":0}'),
    ('{"id":"A","retries":%s}' % ("9" * 5000), '{"id":"A","retries":0}'),
    ('{"id":"A","retries":1e999}', '{"id":"A","retries":0}'),
    ('{"id":"A","retries":null,"passes":true}', '{"id":"A","retries":null,"passes":false}'),
    ('{"id":"A","retries":0.0,"passes":true}', '{"id":"A","retries":0.0,"passes":false}'),
]

OPEN_ALREADY = [
    '{"id":"A"}',
    '{"id":"A","passes":false}',
    '{"id":"A","passes":"no"}',
    '{"id":"A","passes":null,"failed":false,"blocked":"","failureReason":"","retries":0}',
    '{"id":"A","passes":"maybe","done":2}',
    '{"id":"A","status":"deferred"}',
    '{"id":"A","status":"not_started","retries":"0"}',
    '{"id":"A","status":"shipped"}',
    '{"id":"A","failure_reason":null,"retries":[]}',
]


class TestStory:
    @pytest.mark.parametrize(("before", "after"), STORY_TABLE)
    def test_only_the_touched_values_differ(self, before, after):
        assert reopened(f'{{"stories": [{before}, 1]}}') == f'{{"stories": [{after}, 1]}}'

    @pytest.mark.parametrize("story", OPEN_ALREADY)
    def test_that_is_open_already_gives_the_same_bytes(self, story):
        assert reopened(f'{{"stories": [{story}]}}') == f'{{"stories": [{story}]}}'

    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    def test_that_says_nothing_else_becomes_an_empty_object(self, line_end):
        before = '[{\n  "failed": true,\n  "blocked": 1\n}]'.replace("\n", line_end)
        story = ralph.parse_prd(before.encode()).stories[0].id
        assert reopened(before, story) == "[{}]"

    @pytest.mark.parametrize(
        ("others", "word"),
        [
            (["todo"], "todo"),
            (["Open", "not_started", "not_started"], "not_started"),
            (["deferred", "deferred", "open"], "open"),
            (["done", "weird", "weird", "To-Do"], "To-Do"),
            (["deferred", "in_progress", "weird"], "pending"),
            (["todo" + " " * 100, 7, None], "pending"),
        ],
    )
    def test_gets_the_document_s_own_word_for_open(self, others, word):
        rest = "".join(f', {{"status": {json.dumps(other)}}}' for other in others)
        assert reopened(f'[{{"id":"A","status":"done"}}{rest}]') == f'[{{"id":"A","status":"{word}"}}{rest}]'

    @pytest.mark.parametrize("state", ["passed", "failed", "blocked", "in_progress"])
    def test_from_every_state(self, state):
        before = f'{{"stories": [{{"id": "A", "status": "{state}"}}, {{"id": "B", "status": "{state}"}}]}}'
        assert reopened(before) == before.replace(state, "pending", 1)


GAPS = st.sampled_from(["", "", " ", "\n    ", "\r\n\t", "\t", "\r", "  \n\n  "])
KEPT = [
    ('"title"', '"t [}"'),
    ('"notes"', r'"passes: \"true\" \u00e4 \ud800 \\"'),
    ('"größe"', "1.50"),
    ('"blockedBy"', '["B" , {"passes": true}]'),
    ('"x"', '{ "failed":true, "failed" : [ ] }'),
    ('"x"', "null"),
    ('""', "-1E+400"),
    ('"priority"', "99999999999999999999999999"),
]
# Key, value, and the value of an open story; None where the pair is taken out.
STAYS = [
    ('"passes"', "false"),
    ('"passed"', '"perhaps"'),
    ('"retries"', "null"),
    ('"status"', '"weird"'),
    ('"done"', "7"),
]
TURNED = [
    ('"passes"', "true", "false"),
    ('"passes"', "1.0", "0.0"),
    (r'"\u0070asses"', '"Yes"', '"No"'),
    ('"passed"', "1", "0"),
    ('"done"', "true", "false"),
    ('"completed"', '"true"', '"false"'),
    ('"retries"', "3", "0"),
    ('"retryCount"', '"12"', '"0"'),
    ('"status"', '"done"', '"todo"'),
    ('"status"', '"IN PROGRESS"', '"todo"'),
]
TAKEN_OUT = [
    ('"failed"', "true", None),
    (r'"fail\u0065d"', '"yes"', None),
    ('"blocked"', "1", None),
    ('"failureReason"', '"why, \\"}"', None),
    ('"failure_reason"', "[[1], {}]", None),
]
SILENT = [('"failed"', "false", None), ('"blocked"', "null", None), ('"failureReason"', '""', None)]
PAIRS = st.sampled_from([*((key, value, value) for key, value in KEPT + STAYS), *TURNED, *TAKEN_OUT, *SILENT])
SHAPES = st.sampled_from(
    [
        ('{"n":1.0 , "userStories" :[{"status":"todo","passes":true}, ', ', null\r\n]\n,"n":2}\r\n'),
        ('[{"id":"B","status":"todo"},', "]"),
        ('\n{"stories":{"A":{"status":"done"},"other":{"status":"todo"},"A" :', '},"ü":"✓\\u2713"}'),
        ('{"epics":[{"stories":[{"status":"todo"}]},{"name":"e","tasks":[', "]}]}  "),
    ]
)


def is_touched(before, after):
    return before != after and not (after is None and before in [value for _, value, _ in SILENT])


@settings(deadline=None, max_examples=300)
@given(
    shape=SHAPES,
    pairs=st.lists(st.tuples(PAIRS, GAPS, GAPS, GAPS, GAPS), max_size=9),
    place=st.integers(0, 9),
    dress=st.tuples(GAPS, GAPS, GAPS, GAPS),
    bom=st.booleans(),
)
def test_any_story_in_any_formatting_differs_only_where_it_is_touched(shape, pairs, place, dress, bom):
    pairs = [*pairs[:place], (('"id"', '"A"', '"A"'), *dress), *pairs[place:]]
    head, tail = ((BOM if bom else b"") + shape[0].encode(), shape[1].encode())
    text = ",".join(
        f"{lead}{key}{before}:{after}{value}{trail}" for (key, value, _), lead, before, after, trail in pairs
    )
    whole = head + f"{{{text}}}".encode() + tail
    if not any(is_touched(value, wanted) for (_, value, wanted), *_ in pairs):
        assert reopen(whole, "A") == whole
        return
    # A pair that is taken out takes the space around one comma with it; the space at both ends stays.
    expected = []
    for number, ((key, _, wanted), lead, before, after, trail) in enumerate(pairs):
        if wanted is not None:
            space = lead if expected else pairs[0][1]
            expected.append([f"{space}{key}{before}:{after}{wanted}", trail])
        elif expected:
            expected[-1][1] = pairs[number][4]
    result = reopen(whole, "A")
    assert result == head + b"{" + ",".join(map("".join, expected)).encode() + b"}" + tail
    story = next(each for each in ralph.parse_prd(result).stories if each.id == "A")
    assert (story.state, story.retries, story.failure_reason) == (StoryState.PENDING, 0, "")
    assert reopen(result, "A") == result


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=2)
            | st.sampled_from(["stories", "epics", "tasks", "id", "passes", "failed", "status", "retries", "blocked"]),
            inner | st.sampled_from([True, "done", "A"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)
fragments = st.lists(st.sampled_from([*b'{}[],:"\\tfn1e. \r\n', *map(ord, '"passes":true,"id"')]), max_size=40).map(
    bytes
)
any_bytes = st.one_of(
    st.binary(max_size=60), fragments, st.builds(lambda value: json.dumps(value, indent=1).encode(), json_values)
)


@settings(deadline=None, max_examples=300)
@given(data=any_bytes, cut=st.integers(0, 60), name=st.text(max_size=3) | st.just("A"))
@example(data=b'[{"failed":true}]', cut=0, name="A")
def test_any_bytes_give_a_result_or_a_value_error(data, cut, name):
    for damaged in (data, data[:cut] + data[cut + 1 :]):
        try:
            ids = [story.id for story in ralph.parse_prd(damaged).stories]
        except ralph.PrdError:
            ids = []
            with pytest.raises(ValueError):
                reopen(damaged, name)
        if name not in ids:
            with pytest.raises(ValueError):
                reopen(damaged, name)
        for story in ids:
            stories = ralph.parse_prd(reopen(damaged, story)).stories
            assert {each.id: each.state for each in stories}[story] is StoryState.PENDING


@pytest.fixture
def project(tmp_path):
    """A project with the seed's prd.json."""
    (tmp_path / PRD).parent.mkdir(parents=True)
    (tmp_path / PRD).write_text(SEED)
    return tmp_path


@contextmanager
def unchanged(root):
    """The same files with the same bytes, modes, inodes and times before and after."""

    def seen():
        return {
            str(path): (path.lstat().st_ino, path.lstat().st_mode, path.lstat().st_mtime_ns, held(path))
            for path in sorted(root.rglob("*"))
            if not path.is_dir()
        }

    def held(path):
        return path.read_bytes() if path.is_file() else b""

    before = seen()
    yield
    assert seen() == before


def names(root):
    return sorted(path.name for path in (root / PRD.parent).iterdir())


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


class TestOnDisk:
    def test_replaces_the_file_and_tells_what_it_holds(self, project):
        (project / PRD).chmod(0o640)
        assert reopen_on_disk(project, PRD, "US-002") == digest_of(SEED_AFTER)
        assert (project / PRD).read_text() == SEED_AFTER
        assert (project / PRD).stat().st_mode & 0o7777 == 0o640
        assert names(project) == ["prd.json"]

    def test_at_the_root_of_the_project(self, tmp_path):
        (tmp_path / "prd.json").write_text(SEED)
        reopen_on_disk(tmp_path, Path("prd.json"), "US-002")
        assert (tmp_path / "prd.json").read_text() == SEED_AFTER

    def test_an_open_story_is_not_even_rewritten(self, project):
        first = reopen_on_disk(project, PRD, "US-002")
        with unchanged(project):
            assert reopen_on_disk(project, PRD, "US-002", expected_sha256=first) == first

    def test_the_expected_hash(self, project):
        with unchanged(project), pytest.raises(Changed, match="somebody else"):
            reopen_on_disk(project, PRD, "US-002", expected_sha256=digest_of(SEED_AFTER))
        reopen_on_disk(project, PRD, "US-002", expected_sha256=digest_of(SEED))
        assert (project / PRD).read_text() == SEED_AFTER

    def test_an_unexpected_hash_counts_for_an_open_story_too(self, project):
        reopen_on_disk(project, PRD, "US-002")
        with unchanged(project), pytest.raises(Changed):
            reopen_on_disk(project, PRD, "US-002", expected_sha256=digest_of(SEED))

    def test_a_hard_link_elsewhere_keeps_what_it_held(self, project):
        os.link(project / PRD, project / "elsewhere")
        reopen_on_disk(project, PRD, "US-002")
        assert (project / "elsewhere").read_text() == SEED

    def test_leaves_no_descriptor_open(self, project):
        reopen_on_disk(project, PRD, "US-002")
        with pytest.raises(Changed):
            reopen_on_disk(project, PRD, "US-001", expected_sha256="")
        with pytest.raises(ValueError):
            reopen_on_disk(project, PRD, "US-009")
        assert opened_below(project) == []


def opened_below(root):
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is gone by now.
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [each for each in found if each.startswith(str(root))]


class TestHostilePlaces:
    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            reopen_on_disk(tmp_path, PRD, "US-002")

    def test_a_link_in_its_place(self, project):
        shutil.move(project / PRD, project / "real.json")
        (project / PRD).symlink_to(project / "real.json")
        with unchanged(project), pytest.raises(Unreadable):
            reopen_on_disk(project, PRD, "US-002")
        assert names(project) == ["prd.json"]

    def test_a_directory_that_leads_out(self, project, tmp_path_factory):
        outside = tmp_path_factory.mktemp("outside")
        shutil.move(project / "scripts" / "ralph", outside / "ralph")
        (project / "scripts" / "ralph").symlink_to(outside / "ralph")
        with unchanged(outside), pytest.raises(Unreadable, match="leads out"):
            reopen_on_disk(project, PRD, "US-002")

    def test_a_directory_that_leads_elsewhere_inside(self, project):
        shutil.move(project / "scripts" / "ralph", project / "real")
        (project / "scripts" / "ralph").symlink_to("../real")
        reopen_on_disk(project, PRD, "US-002")
        assert (project / "real" / "prd.json").read_text() == SEED_AFTER
        assert (project / "scripts" / "ralph").is_symlink()

    @pytest.mark.parametrize("path", ["../prd.json", "/etc/passwd", "", ".", "scripts", "a\0b"])
    def test_a_path_that_is_none_of_the_project(self, project, path):
        with unchanged(project), pytest.raises(OSError):
            reopen_on_disk(project, Path(path), "US-002")

    def test_a_pipe_does_not_block(self, project):
        (project / PRD).unlink()
        os.mkfifo(project / PRD)
        with pytest.raises(Unreadable):
            reopen_on_disk(project, PRD, "US-002")

    def test_too_large(self, project):
        with (project / PRD).open("ab") as file:
            file.truncate(ralph.MAX_BYTES + 1)
        with unchanged(project), pytest.raises(Unreadable, match="larger than"):
            reopen_on_disk(project, PRD, "US-002")

    @pytest.mark.parametrize("story", ["US-009", ""])
    def test_no_such_story(self, project, story):
        with unchanged(project), pytest.raises(ValueError, match="has no story"):
            reopen_on_disk(project, PRD, story)


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFailures:
    @pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
    def test_of_any_step_leaves_the_file_whole_and_nothing_behind(self, project, monkeypatch, call):
        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, call, full)
        with unchanged(project), pytest.raises(OSError, match="No space left"):
            reopen_on_disk(project, PRD, "US-002")

    def test_of_the_write_itself(self, project):
        """A limit on the size of files stands for the full disk: the write stops half way."""
        (project / PRD).write_text(SEED + " " * 20_000)
        with unchanged(project), files_of_at_most(4096), pytest.raises(OSError, match="File too large"):
            reopen_on_disk(project, PRD, "US-002")

    def test_an_interrupt_leaves_nothing_behind(self, project, monkeypatch):
        def interrupted(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with unchanged(project), pytest.raises(KeyboardInterrupt):
            reopen_on_disk(project, PRD, "US-002")

    def test_a_name_that_is_taken_is_not_written_through(self, project, monkeypatch):
        monkeypatch.setattr(document.secrets, "token_hex", lambda length: "0")
        (project / PRD.parent / ".prd.json.0").symlink_to(project / "target")
        (project / "target").write_text("mine")
        with unchanged(project), pytest.raises(FileExistsError):
            reopen_on_disk(project, PRD, "US-002")

    def test_killed_before_the_rename_leaves_the_old_file_whole(self, project):
        dying = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from projects.rollback import document\n"
            "os.rename = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)\n"
            "document.reopen_on_disk(Path(sys.argv[1]), Path(sys.argv[2]), 'US-002')\n"
        )
        child = subprocess.run([sys.executable, "-c", dying, project, PRD], check=False, cwd=ROOT, timeout=120)
        assert child.returncode == -signal.SIGKILL
        assert (project / PRD).read_text() == SEED
        left = [name for name in names(project) if name != "prd.json"]
        assert [(project / PRD.parent / name).read_text() for name in left] == [SEED_AFTER]
        assert reopen_on_disk(project, PRD, "US-002") == digest_of(SEED_AFTER)
        assert (project / PRD).read_text() == SEED_AFTER

    def test_file_and_directory_are_on_disk_in_that_order(self, project, monkeypatch):
        steps = []
        real_sync, real_rename = os.fsync, os.rename

        def sync(descriptor):
            steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".json")[0])
            real_sync(descriptor)

        def rename(*args, **kwargs):
            steps.append("rename")
            real_rename(*args, **kwargs)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "rename", rename)
        reopen_on_disk(project, PRD, "US-002")
        assert steps == [".prd", "rename", "ralph"]


def write_in_place(path):
    path.write_text(SEED + "\n")


def write_anew(path):
    path.with_name("new").write_text(SEED + "\n")
    path.with_name("new").rename(path)


def change_its_mode(path):
    path.chmod(0o600 if path.stat().st_mode & 0o044 else 0o644)


def put_a_link(path):
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def put_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_a_directory(path):
    path.unlink()
    path.mkdir()


SOMEBODY = [write_in_place, write_anew, change_its_mode, put_a_link, put_a_pipe, put_a_directory, Path.unlink]


class TestSomebodyElse:
    @pytest.mark.parametrize("act", SOMEBODY)
    def test_between_the_new_file_and_the_rename(self, project, monkeypatch, act):
        real = os.fsync

        def meanwhile(descriptor):
            real(descriptor)
            act(project / PRD)
            left.update(state(project))

        left = {}
        monkeypatch.setattr(os, "fsync", meanwhile)
        with pytest.raises(Changed):
            reopen_on_disk(project, PRD, "US-002")
        left = {name: each for name, each in left.items() if not name.startswith(".prd.json.")}
        assert state(project) == left
        assert opened_below(project) == []

    @pytest.mark.parametrize("act", [each for each in SOMEBODY if each is not change_its_mode])
    def test_between_reading_and_the_new_file(self, project, monkeypatch, act):
        def meanwhile(data, story):
            result = reopen(data, story)
            act(project / PRD)
            left.update(state(project))
            return result

        left = {}
        monkeypatch.setattr(document, "reopen", meanwhile)
        with pytest.raises(Changed):
            reopen_on_disk(project, PRD, "US-002")
        assert state(project) == left

    def test_is_taken_into_account_the_next_time(self, project, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: write_in_place(project / PRD))
            with pytest.raises(Changed):
                reopen_on_disk(project, PRD, "US-002")
        reopen_on_disk(project, PRD, "US-002")
        assert (project / PRD).read_text() == SEED_AFTER + "\n"

    def test_a_directory_swapped_for_one_outside_is_not_written_to(self, project, monkeypatch, tmp_path_factory):
        outside = tmp_path_factory.mktemp("outside")
        shutil.copy(project / PRD, outside / "prd.json")

        def meanwhile(data, story):
            (project / PRD.parent).rename(project / "aside")
            (project / PRD.parent).symlink_to(outside)
            return reopen(data, story)

        monkeypatch.setattr(document, "reopen", meanwhile)
        with unchanged(outside), pytest.raises(Unreadable, match="leads out"):
            reopen_on_disk(project, PRD, "US-002")


def state(project):
    found = {}
    for path in (project / PRD.parent).iterdir():
        status = path.lstat()
        found[path.name] = (status.st_ino, status.st_mode, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.fixture
def shared():
    """A project in a place that every user can reach."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "prd.json").write_text(SEED)
    yield root
    shutil.rmtree(root)


@contextmanager
def as_nobody():
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class TestOwner:
    def test_a_directory_that_may_not_be_written(self, shared):
        shared.chmod(0o555)
        with unchanged(shared), as_nobody() if os.geteuid() == 0 else nullcontext(), pytest.raises(PermissionError):
            reopen_on_disk(shared, Path("prd.json"), "US-002")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_and_group_are_kept(self, shared):
        os.chown(shared / "prd.json", 12345, 23456)
        (shared / "prd.json").chmod(0o2664)
        reopen_on_disk(shared, Path("prd.json"), "US-002")
        status = (shared / "prd.json").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12345, 23456, 0o2664)
        assert (shared / "prd.json").read_text() == SEED_AFTER

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_that_is_another_is_not_taken_from_them(self, shared):
        shared.chmod(0o777)
        with unchanged(shared), as_nobody(), pytest.raises(Unreadable, match="another user"):
            reopen_on_disk(shared, Path("prd.json"), "US-002")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_group_that_is_not_ours_is_given_up(self, shared):
        shared.chmod(0o777)
        os.chown(shared / "prd.json", NOBODY, 23456)
        with as_nobody():
            reopen_on_disk(shared, Path("prd.json"), "US-002")
        assert (shared / "prd.json").read_text() == SEED_AFTER
        assert (shared / "prd.json").stat().st_uid == NOBODY
