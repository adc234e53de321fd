"""Ralph's files on disk: every tolerance rule, every refusal, and what nobody thought of."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects import ralph
from projects.ralph import PrdError, ProjectBusy, StoryState, Unreadable

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]


def parse(document):
    return ralph.parse_prd(json.dumps(document).encode())


def story(**fields):
    """The one story of a document that holds nothing else."""
    return parse({"userStories": [{"id": "US-1", "title": "One", **fields}]}).stories[0]


def warnings_of(**fields):
    return parse({"userStories": [{"id": "US-1", "title": "One", **fields}]}).warnings


class TestWholeDocument:
    def test_every_field_of_the_seed_format(self):
        document = parse(
            {
                "project": "Demo",
                "branchName": "ralph/demo",
                "description": "What it is",
                "unknown": {"kept": 1},
                "userStories": [
                    {
                        "id": "US-001",
                        "title": "First",
                        "description": "As a user",
                        "acceptanceCriteria": ["a", "b"],
                        "priority": 3,
                        "passes": False,
                        "notes": "n",
                        "tags": ["api"],
                        "dependsOn": ["US-002"],
                        "retries": 2,
                        "failed": True,
                        "blocked": False,
                        "failureReason": "it broke",
                        "requiresDesignReview": True,
                    },
                    {"id": "US-002", "title": "Second", "priority": 1, "passes": True},
                ],
            }
        )
        assert (document.project, document.branch_name, document.description) == (
            "Demo",
            "ralph/demo",
            "What it is",
        )
        assert document.warnings == ()
        assert document.raw["unknown"] == {"kept": 1}
        assert document.stories[0] == ralph.Story(
            id="US-001",
            title="First",
            description="As a user",
            acceptance_criteria=("a", "b"),
            priority=3,
            state=StoryState.FAILED,
            tags=("api",),
            depends_on=("US-002",),
            retries=2,
            failure_reason="it broke",
            notes="n",
            group="",
            position=0,
            requires_design_review=True,
        )

    def test_snake_case_spellings(self):
        document = parse(
            {
                "branch_name": "b",
                "user_stories": [
                    {
                        "id": "A",
                        "title": "t",
                        "acceptance_criteria": ["a"],
                        "depends_on": ["A"],
                        "failure_reason": "f",
                        "requires_design_review": True,
                    }
                ],
            }
        )
        only = document.stories[0]
        assert document.branch_name == "b"
        assert (only.acceptance_criteria, only.depends_on) == (("a",), ("A",))
        assert (only.failure_reason, only.requires_design_review) == ("f", True)

    def test_bom_and_crlf(self):
        data = b"\xef\xbb\xbf" + b'{\r\n "userStories": [\r\n  {"id": "A", "notes": "x\\r\\ny"}\r\n ]\r\n}\r\n'
        assert ralph.parse_prd(data).stories[0].notes == "x\ny"

    def test_project_may_be_an_object_with_a_name(self):
        assert parse({"project": {"name": "Demo"}, "stories": []}).project == "Demo"

    def test_odd_head_values_are_empty(self):
        document = parse({"project": ["x"], "branchName": True, "description": {"a": 1}, "stories": []})
        assert (document.project, document.branch_name, document.description) == ("", "", "")

    def test_warnings_are_capped(self):
        document = parse({"stories": [None] * 60 + [{"id": "A", "title": "t"}]})
        assert len(document.stories) == 1
        assert len(document.warnings) == 51
        assert document.warnings[-1] == "and 10 more"


ITEM = {"id": "A", "title": "t"}
SHAPES = [
    ({"userStories": [ITEM]}, "", ("userStories", 0)),
    ({"stories": [ITEM]}, "", ("stories", 0)),
    ({"tasks": [ITEM]}, "", ("tasks", 0)),
    ({"items": [ITEM]}, "", ("items", 0)),
    ([ITEM], "", (0,)),
    ({"stories": {"A": {"title": "t"}}}, "", ("stories", "A")),
    ({"A": {"title": "t"}, "project": "p", "meta": {"x": 1}}, "", ("A",)),
    ({"milestones": [{"name": "M", "stories": [ITEM]}]}, "M", ("milestones", 0, "stories", 0)),
    ({"phases": [{"title": "P", "tasks": [ITEM]}]}, "P", ("phases", 0, "tasks", 0)),
    ({"epics": [{"id": 7, "items": {"A": {"title": "t"}}}]}, "7", ("epics", 0, "items", "A")),
    ({"epics": [{"userStories": [ITEM]}]}, "epic 1", ("epics", 0, "userStories", 0)),
    ({"phases": [[ITEM]]}, "phase 1", ("phases", 0, 0)),
    ({"phases": {"Build": [ITEM]}}, "Build", ("phases", "Build", 0)),
    ({"phases": {"Build": {"stories": [ITEM]}}}, "Build", ("phases", "Build", "stories", 0)),
    ({"milestones": {"M1": {"A": {"title": "t"}}}}, "M1", ("milestones", "M1", "A")),
    ({"userStories": [], "stories": [ITEM]}, "", ("stories", 0)),
    ({"userStories": [], "phases": [{"stories": [ITEM]}]}, "phase 1", ("phases", 0, "stories", 0)),
    ({"tasks": ["US-1"], "epics": [{"stories": [ITEM]}]}, "epic 1", ("epics", 0, "stories", 0)),
    ({"userStories": None, "tasks": [ITEM]}, "", ("tasks", 0)),
    ({"userStories": [ITEM], "tasks": [{"id": "B"}]}, "", ("userStories", 0)),
]


class TestShapes:
    @pytest.mark.parametrize(("document", "group", "path"), SHAPES)
    def test_one_story_is_found(self, document, group, path):
        parsed = parse(document)
        assert [(s.id, s.title, s.group, s.position) for s in parsed.stories] == [("A", "t", group, 0)]
        assert parsed.warnings == ()
        assert ralph.story_paths(parsed.raw) == (path,)

    def test_groups_are_read_in_order(self):
        parsed = parse(
            {
                "phases": [{"name": "1", "stories": [{"id": "A"}]}, {"name": "2", "stories": [{"id": "B"}]}],
                "epics": [{"name": "3", "stories": [{"id": "C"}]}, {"name": "empty"}],
            }
        )
        assert [(s.id, s.group, s.position) for s in parsed.stories] == [
            ("A", "1", 0),
            ("B", "2", 1),
            ("C", "3", 2),
        ]

    @pytest.mark.parametrize(
        ("document", "warning"),
        [
            ({}, "No list of stories was found."),
            ({"userStories": 5}, "userStories is neither a list nor an object."),
            ({"tasks": ["x"]}, "Story number 1 is not an object and was left out."),
            ({"tasks": {"US-9": "x"}}, "Story US-9 is not an object and was left out."),
            ({"phases": ["x"]}, "Phase 1 is not an object and was left out."),
        ],
    )
    def test_no_stories_is_said(self, document, warning):
        parsed = parse(document)
        assert (parsed.stories, parsed.warnings) == ((), (warning,))

    @pytest.mark.parametrize("document", [{"userStories": []}, {"stories": {}}, [], {"epics": []}])
    def test_an_empty_list_is_no_mistake(self, document):
        parsed = parse(document)
        assert (parsed.stories, parsed.warnings) == ((), ())

    def test_paths_skip_what_is_no_story(self):
        parsed = parse({"stories": ["odd", {"id": "A"}, 3, {"id": "B"}]})
        assert [(s.id, s.position) for s in parsed.stories] == [("A", 0), ("B", 1)]
        assert ralph.story_paths(parsed.raw) == (("stories", 1), ("stories", 3))
        assert len(parsed.warnings) == 2

    @pytest.mark.parametrize("raw", [None, 5, "text"])
    def test_no_paths_in_what_is_no_document(self, raw):
        assert ralph.story_paths(raw) == ()


class TestState:
    @pytest.mark.parametrize(
        ("word", "state"),
        [
            ("done", "passed"),
            ("completed", "passed"),
            ("passed", "passed"),
            ("Complete", "passed"),
            ("failed", "failed"),
            ("BLOCKED", "blocked"),
            ("in_progress", "in_progress"),
            ("in-progress", "in_progress"),
            ("In Progress", "in_progress"),
            ("doing", "in_progress"),
            ("pending", "pending"),
            ("open", "pending"),
            (" todo ", "pending"),
            ("not_started", "pending"),
            ("deferred", "pending"),
        ],
    )
    def test_status_words(self, word, state):
        assert story(status=word).state == state
        assert warnings_of(status=word) == ()

    @pytest.mark.parametrize("word", ["mystery", 5, True, ["done"], {"x": 1}])
    def test_unknown_status_is_pending_with_a_warning(self, word):
        assert story(status=word).state is StoryState.PENDING
        assert len(warnings_of(status=word)) == 1

    @pytest.mark.parametrize("value", [True, "true", "TRUE", "yes", " Yes ", 1, 1.0, "1"])
    def test_true(self, value):
        assert story(passes=value).passes
        assert warnings_of(passes=value) == ()

    @pytest.mark.parametrize("value", [False, "false", "No", 0, "0", None, ""])
    def test_false(self, value):
        assert not story(passes=value).passes
        assert warnings_of(passes=value) == ()

    @pytest.mark.parametrize("value", ["maybe", "pass", 2, -1, 0.5, [True], {"a": 1}])
    def test_neither_is_not_passed_with_a_warning(self, value):
        assert not story(passes=value).passes
        assert len(warnings_of(passes=value)) == 1

    @pytest.mark.parametrize(
        ("fields", "state"),
        [
            ({}, "pending"),
            ({"status": "doing"}, "in_progress"),
            ({"status": "doing", "blocked": True}, "blocked"),
            ({"blocked": True, "failed": True}, "failed"),
            ({"blocked": True, "failed": True, "passes": True}, "passed"),
            ({"status": "blocked", "failed": "yes"}, "failed"),
            ({"status": "failed", "passes": "true"}, "passed"),
            ({"status": "done", "passes": False, "failed": True}, "passed"),
            ({"status": "pending", "passes": "false", "blocked": 1}, "blocked"),
        ],
    )
    def test_precedence(self, fields, state):
        one = story(**fields)
        assert one.state == state
        assert (one.passes, one.failed, one.blocked) == (
            state == "passed",
            state == "failed",
            state == "blocked",
        )


class TestFields:
    @pytest.mark.parametrize(
        ("value", "priority"),
        [
            (1, 1),
            (-3, -3),
            ("2", 2),
            (" 7 ", 7),
            (2.0, 2),
            ("P0", 0),
            ("p4", 4),
            ("high", 1),
            ("Medium", 2),
            ("LOW", 3),
            (None, 1),
            ("", 1),
            (10**12, 2**31 - 1),
            (-(10**12), -(2**31) + 1),
        ],
    )
    def test_priority(self, value, priority):
        assert story(priority=value).priority == priority
        assert warnings_of(priority=value) == ()

    @pytest.mark.parametrize("value", [True, 1.5, "P5", "soon", [1], {"a": 1}, "9" * 30, 10**30])
    def test_unknown_priority_is_the_order_of_the_file(self, value):
        parsed = parse([{"id": "A", "title": "a"}, {"id": "B", "title": "b", "priority": value}])
        assert [s.priority for s in parsed.stories] == [1, 2]
        assert len(parsed.warnings) == 1

    def test_p0_is_more_urgent_than_p1(self):
        parsed = parse([{"id": "A", "title": "a", "priority": "P1"}, {"id": "B", "title": "b", "priority": "P0"}])
        assert ralph.current_story(parsed.stories).id == "B"

    @pytest.mark.parametrize(
        "key",
        [
            "acceptanceCriteria",
            "acceptance",
            "acceptance_criteria",
            "criteria",
            "actionItems",
            "action_items",
        ],
    )
    def test_criteria_keys(self, key):
        assert story(**{key: ["a"]}).acceptance_criteria == ("a",)

    @pytest.mark.parametrize(
        ("value", "criteria", "warned"),
        [
            (["a", {"text": "b"}, {"description": "c"}], ("a", "b", "c"), 0),
            ("only", ("only",), 0),
            ({"text": "only"}, ("only",), 0),
            ({"AC1": "a", "AC2": {"text": "b"}}, ("a", "b"), 0),
            ([1, 2.5], ("1", "2.5"), 0),
            (["a", None, "", "  "], ("a",), 1),
            (["a", True, ["x"], {"z": 1}], ("a",), 3),
            (["x"] * 300, ("x",) * 200, 1),
        ],
    )
    def test_criteria_forms(self, value, criteria, warned):
        assert story(criteria=value).acceptance_criteria == criteria
        assert len(warnings_of(criteria=value)) == warned

    @pytest.mark.parametrize("key", ["dependsOn", "depends_on", "deps", "dependencies", "blockedBy", "blocked_by"])
    def test_dependency_keys(self, key):
        parsed = parse([{"id": 1, "title": "a"}, {"id": "B", "title": "b", key: [1]}])
        assert parsed.stories[1].depends_on == ("1",)
        assert parsed.warnings == ()

    def test_the_first_alias_that_says_something_counts(self):
        assert story(dependsOn=[], blockedBy=["US-1"]).depends_on == ("US-1",)

    def test_dependencies_as_text_and_objects(self):
        assert story(deps="US-1, US-1,  US-2").depends_on == ("US-1", "US-2")
        assert story(deps=[{"id": "US-1"}]).depends_on == ("US-1",)

    def test_dependencies_are_cleaned_like_ids(self):
        odd = " A\x00" + " " * 300 + "B" + "x" * 300
        parsed = parse([{"id": odd, "title": "a"}, {"id": "B", "title": "b", "deps": [odd]}])
        assert parsed.stories[1].depends_on == (parsed.stories[0].id,)
        assert parsed.warnings == ()

    def test_unknown_dependency_is_said(self):
        assert warnings_of(deps=["US-9"]) == ("Story US-1 depends on US-9, which no story is called.",)

    @pytest.mark.parametrize(("value", "tags"), [(["a", "b", "a"], ("a", "b")), ("a, b", ("a", "b")), ([3], ("3",))])
    def test_tags(self, value, tags):
        assert story(tags=value).tags == tags

    @pytest.mark.parametrize(
        ("value", "retries", "warned"),
        [(3, 3, 0), ("4", 4, 0), (None, 0, 0), (-1, 0, 1), (True, 0, 1), ("x", 0, 1), (10**15, 2**31 - 1, 0)],
    )
    def test_retries(self, value, retries, warned):
        assert story(retries=value).retries == retries
        assert len(warnings_of(retries=value)) == warned

    @pytest.mark.parametrize(
        ("value", "notes", "warned"),
        [
            ("n", "n", 0),
            (["a", "b"], "a\nb", 0),
            (5, "5", 0),
            (None, "", 0),
            ({"a": 1}, "", 1),
            (True, "", 1),
        ],
    )
    def test_texts(self, value, notes, warned):
        assert story(notes=value).notes == notes
        assert len(warnings_of(notes=value)) == warned

    def test_texts_are_capped(self):
        long = "x" * 30_000
        one = story(id=long, title=long, description=long, notes=long, criteria=[long], failureReason=long)
        assert (len(one.id), len(one.title)) == (200, 500)
        assert {len(t) for t in (one.description, one.notes, one.failure_reason, *one.acceptance_criteria)} == {20_000}

    def test_control_characters_and_lone_surrogates_are_removed(self):
        one = story(id="U\x00S\n1", title="a\x00\x07b\ud800c\td", notes="x\x00\x1b[1m\n\ty\udfff😀")
        assert (one.id, one.title, one.notes) == ("US 1", "abc d", "x[1m\n\ty😀")

    def test_title_falls_back(self):
        assert story(title=None, name="n").title == "n"
        assert story(title=None, description="first\nsecond").title == "first"
        assert story(title=None).title == "US-1"


class TestIds:
    def ids(self, *stories):
        return [s.id for s in parse(list(stories)).stories]

    def test_numbers_become_text(self):
        assert self.ids({"id": 7, "title": "a"}, {"id": 1.5, "title": "b"}) == ["7", "1.5"]

    def test_missing_id_is_position_and_hash_of_title(self):
        digest = hashlib.sha256(b"Log in").hexdigest()[:6]
        parsed = parse([{"id": "A"}, {"title": "Log in"}])
        assert parsed.stories[1].id == f"story-2-{digest}"
        assert parsed.warnings == (f"Story 2 has no id and is shown as story-2-{digest}.",)

    @pytest.mark.parametrize("value", [True, [1], {"a": 1}, "   "])
    def test_odd_id_is_replaced_with_a_warning(self, value):
        parsed = parse([{"id": value, "title": "t"}])
        assert parsed.stories[0].id.startswith("story-1-")
        assert len(parsed.warnings) == 1

    def test_own_id_beats_the_key(self):
        parsed = parse({"stories": {"K": {"id": "A", "title": "t"}, "L": {"title": "u"}}})
        assert [s.id for s in parsed.stories] == ["A", "L"]

    def test_twins_get_a_suffix(self):
        assert self.ids({"id": "A"}, {"id": "A"}, {"id": "A"}) == ["A", "A-2", "A-3"]

    def test_a_suffix_takes_no_id_that_the_file_gives(self):
        assert self.ids({"id": "A"}, {"id": "A"}, {"id": "A-2"}) == ["A", "A-3", "A-2"]

    def test_long_twins_stay_within_the_cap(self):
        ids = self.ids({"id": "x" * 300}, {"id": "x" * 300})
        assert len(set(ids)) == 2
        assert max(map(len, ids)) == 200

    def test_many_twins_are_quick(self):
        started = time.perf_counter()
        assert len(set(self.ids(*[{"id": "A"}] * 5000))) == 5000
        assert time.perf_counter() - started < 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "line", "column"),
        [
            (b"", 1, 1),
            (b" \n ", 1, 1),
            (b"{", 1, 2),
            (b'{\n  "a": ]\n}', 2, 8),
            (b'{\r\n  "a": ]\r\n}', 2, 8),
            (b'\xef\xbb\xbf{"a" 1}', 1, 6),
            (b'{"a": "\x01"}', 1, 8),
            (b'{\n"\xc3\xa9": "\xff"}', 2, 7),
            (b"\xff\xfe{\x00}\x00", 1, 1),
            (b"5", 1, 1),
            (b'"text"', 1, 1),
            (b'{"a":\n NaN}', 2, 2),
            (b'{"a": -Infinity}', 1, 8),
            (b"[" * 51 + b"]" * 51, 1, 51),
            (b"[" * 100_000, 1, 51),
            (b'{"a":' * 100_000, 1, 251),
        ],
    )
    def test_place_is_told(self, data, line, column):
        with pytest.raises(PrdError) as refused:
            ralph.parse_prd(data)
        error = refused.value
        assert (error.line, error.column) == (line, column)
        assert str(error) == f"{error.message} (line {line}, column {column})"

    def test_too_large(self):
        with pytest.raises(PrdError, match="larger than 5 MB") as refused:
            ralph.parse_prd(b" " * (ralph.MAX_BYTES + 1))
        assert (refused.value.line, refused.value.column) == (0, 0)
        assert str(refused.value) == refused.value.message

    def test_just_large_enough(self):
        assert ralph.parse_prd(b"[]" + b" " * (ralph.MAX_BYTES - 2)).stories == ()

    def test_stories_are_limited(self):
        assert len(parse([{"id": i} for i in range(5000)]).stories) == ralph.MAX_STORIES
        with pytest.raises(PrdError, match="more than 5000"):
            parse([{"id": i} for i in range(5001)])
        with pytest.raises(PrdError, match="more than 5000"):
            parse({"phases": [{"stories": [{"id": i} for i in range(2501)]}] * 2})

    def test_depth_50_is_read(self):
        assert ralph.parse_prd(b"[" * 50 + b"]" * 50).stories == ()

    def test_brackets_and_constants_in_text_are_text(self):
        parsed = parse([{"id": "A", "title": "[" * 100 + '" NaN \\'}])
        assert parsed.stories[0].title == "[" * 100 + '" NaN \\'

    def test_a_full_stack_is_no_crash(self, monkeypatch):
        def overflow(*args, **keywords):
            raise RecursionError

        monkeypatch.setattr(json, "loads", overflow)
        with pytest.raises(PrdError, match="too deeply"):
            ralph.parse_prd(b"[]")

    @pytest.mark.parametrize(
        "data",
        [
            b'"' * ralph.MAX_BYTES,
            b'\\"' * (ralph.MAX_BYTES // 2),
            b"[]," * (ralph.MAX_BYTES // 3),
            b'"\\"' * 1_700_000,
        ],
    )
    def test_hostile_repetition_is_linear(self, data):
        started = time.perf_counter()
        with pytest.raises(PrdError):
            ralph.parse_prd(data)
        assert time.perf_counter() - started < 10


class TestRaw:
    def test_numbers_beyond_64_bits_are_kept_as_text(self):
        huge = "9" * 5000
        raw = ralph.parse_prd(f'[{{"id": "A", "a": {huge}, "b": 1e999, "c": {2**63 - 1}, "d": 1.5}}]'.encode()).raw
        assert raw == [{"id": "A", "a": huge, "b": "1e999", "c": 2**63 - 1, "d": 1.5}]

    def test_what_cannot_be_stored_is_replaced(self):
        raw = ralph.parse_prd(b'[{"id": "A", "x\\u0000": ["\\ud800", "\\ud83d\\ude00"]}]').raw
        assert raw == [{"id": "A", "x\ufffd": ["\ufffd", "😀"]}]


class TestCurrentStory:
    def current(self, *stories):
        found = ralph.current_story(parse(list(stories)).stories)
        return found and found.id

    def test_lowest_priority_then_id(self):
        assert self.current({"id": "B", "priority": 1}, {"id": "A", "priority": 1}, {"id": "C", "priority": 2}) == "A"

    def test_open_ones_only(self):
        assert (
            self.current(
                {"id": "A", "passes": True},
                {"id": "B", "failed": True},
                {"id": "C", "blocked": True},
                {"id": "D", "status": "doing"},
            )
            == "D"
        )

    def test_waits_for_its_dependencies(self):
        assert self.current({"id": "A", "priority": 1, "deps": ["B"]}, {"id": "B", "priority": 2}) == "B"
        assert self.current({"id": "A", "deps": ["B"]}, {"id": "B", "passes": True}) == "A"
        assert self.current({"id": "A", "deps": ["B"]}, {"id": "B", "failed": True}) is None

    def test_unknown_dependency_does_not_block(self):
        assert self.current({"id": "A", "deps": ["gone"]}) == "A"

    def test_none_open(self):
        assert self.current() is None
        assert self.current({"id": "A", "passes": True}) is None

    def test_takes_any_iterable(self):
        stories = parse([{"id": "A", "title": "t"}]).stories
        assert ralph.current_story(iter(stories)) == stories[0]


KEYS = [
    *("id", "title", "name", "passes", "failed", "blocked", "status", "priority", "criteria", "text", "x"),
    *("acceptanceCriteria", "deps", "dependsOn", "tags", "retries", "notes", "description", "project"),
    *("branchName", "userStories", "stories", "tasks", "phases", "epics"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


def assert_sound(document):
    counts = Counter(s.state for s in document.stories)
    assert sum(counts[state] for state in StoryState) == len(document.stories)
    assert all(s.passes + s.failed + s.blocked <= 1 for s in document.stories)
    ids = [s.id for s in document.stories]
    assert len(set(ids)) == len(ids)
    assert all(0 < len(name) <= 200 for name in ids)
    assert [s.position for s in document.stories] == list(range(len(ids)))
    assert len(document.warnings) <= 51
    shown = repr([document.project, document.branch_name, document.warnings, document.stories])
    assert "\\x00" not in shown
    json.dumps(document.raw, ensure_ascii=False, allow_nan=False).encode()
    for one in document.stories:
        texts = (one.id, one.title, one.description, one.notes, one.failure_reason, one.group)
        for text in (*texts, *one.tags, *one.depends_on, *one.acceptance_criteria, *document.warnings):
            text.encode()
            assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
    paths = ralph.story_paths(document.raw)
    for path in paths:
        node = document.raw
        for step in path:
            node = node[step]
        assert isinstance(node, dict)


def outcome(data):
    """What parse_prd makes of `data`: a document, checked here, or its refusal; nothing else passes."""
    try:
        document = ralph.parse_prd(data)
    except PrdError as error:
        return error
    assert_sound(document)
    return document


class TestProperties:
    @settings(deadline=None)
    @given(st.binary())
    def test_any_bytes(self, data):
        assert isinstance(outcome(data), ralph.Document) or str(outcome(data)).encode()

    @settings(deadline=None)
    @given(st.text(alphabet='{}[]",:\\ \n0123456789eE.-NaInfityutrefalsn\ud7ff', max_size=60))
    def test_nearly_json(self, text):
        result = outcome(text.encode())
        assert isinstance(result, ralph.Document) or 1 <= result.line <= text.count("\n") + 1

    @settings(max_examples=300, deadline=None)
    @given(JSON)
    def test_any_json(self, value):
        data = json.dumps(value).encode()
        first, second = outcome(data), outcome(data)
        assert first == second or str(first) == str(second)

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.dictionaries(st.sampled_from(["id", "title", "passes", "status", "deps", "tags", "priority"]), JSON)
        )
    )
    def test_any_stories(self, stories):
        stories = json.loads(json.dumps(stories).replace("NaN", "0").replace("Infinity", "0"))
        document = parse({"userStories": stories})
        assert_sound(document)
        assert len(document.stories) == len(stories)
        assert len(ralph.story_paths(document.raw)) == len(stories)
        current = ralph.current_story(document.stories)
        assert current is None or current.state in {StoryState.PENDING, StoryState.IN_PROGRESS}

    @settings(deadline=None)
    @given(st.text(), st.text())
    def test_slugs_are_legal(self, name, path):
        slug, warning = ralph.slug_for(name, path)
        assert ralph.is_slug(slug)
        assert (warning == "") == (slug == name)
        other, _ = ralph.slug_for(name, path, {slug})
        assert ralph.is_slug(other)
        assert other != slug
        warning.encode()

    @settings(deadline=None)
    @given(st.text())
    def test_headings_take_any_text(self, text):
        for heading in ralph.progress_headings("## 2026 - " + text):
            assert heading.line >= 1
            assert heading.story_id.encode()
            assert len(heading.story_id) <= 200

    @settings(deadline=None)
    @given(st.binary())
    def test_pids_take_any_bytes(self, data):
        pid = ralph.parse_pid(data)
        assert pid is None or 1 < pid <= 4_194_304


class TestPlaces:
    def put(self, root, place, text="{}"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)

    def test_order_is_the_order_of_the_spec(self, tmp_path):
        for place in reversed(ralph.PRD_PLACES):
            self.put(tmp_path, place)
            assert ralph.find_prd(tmp_path) == Path(place)
        assert ralph.PRD_PLACES[0] == "scripts/ralph/prd.json"
        assert len(ralph.PRD_PLACES) == 6

    def test_nothing_is_found(self, tmp_path):
        assert ralph.find_prd(tmp_path) is None
        assert ralph.find_prd(tmp_path / "absent") is None
        assert not ralph.is_project(tmp_path)
        assert not ralph.is_project(tmp_path / "absent")

    def test_a_directory_is_passed_over(self, tmp_path):
        (tmp_path / "scripts/ralph/prd.json").mkdir(parents=True)
        (tmp_path / "plans").write_text("a file where a folder is expected")
        self.put(tmp_path, "prd.json")
        assert ralph.find_prd(tmp_path) == Path("prd.json")

    def test_links_that_lead_out_are_passed_over(self, tmp_path):
        outside = tmp_path / "outside"
        self.put(outside, "prd.json")
        root = tmp_path / "root"
        (root / "plans").mkdir(parents=True)
        (root / "ralph").symlink_to(outside)
        (root / "plans/prd.json").symlink_to(outside / "prd.json")
        (root / ".ralph").symlink_to(".ralph")
        assert ralph.find_prd(root) is None
        assert not ralph.is_project(root)

    def test_a_linked_folder_inside_is_fine(self, tmp_path):
        self.put(tmp_path, "tools/prd.json")
        (tmp_path / "ralph").symlink_to("tools")
        assert ralph.find_prd(tmp_path) == Path("ralph/prd.json")
        assert ralph.read_inside(tmp_path, "ralph/prd.json", 10) == b"{}"

    def test_git_folder_or_file(self, tmp_path):
        for name, make in (("folder", Path.mkdir), ("file", Path.touch)):
            (tmp_path / name).mkdir()
            make(tmp_path / name / ".git")
            assert ralph.is_project(tmp_path / name)
        (tmp_path / "link").mkdir()
        (tmp_path / "link/.git").symlink_to(tmp_path / "folder/.git")
        assert not ralph.is_project(tmp_path / "link")

    def test_prd_makes_a_project(self, tmp_path):
        self.put(tmp_path, "plans/prd.json")
        assert ralph.is_project(tmp_path)


class TestSlug:
    @pytest.mark.parametrize("text", ["a", "A-b_9", "-", "x" * 64])
    def test_legal(self, text):
        assert ralph.is_slug(text)
        assert ralph.slug_for(text, "/w/" + text) == (text, "")

    @pytest.mark.parametrize("text", ["", "a\n", "a b", "é", "a.b", "a/b", "x" * 65, "..", "١"])
    def test_illegal(self, text):
        assert not ralph.is_slug(text)

    @pytest.mark.parametrize(
        ("name", "stem"),
        [("my app.v2", "myappv2"), ("émile", "mile"), ("...", "project"), ("x" * 99, "x" * 57)],
    )
    def test_illegal_names_get_the_hash_of_the_path(self, name, stem):
        digest = hashlib.sha256(f"/w/{name}".encode()).hexdigest()[:6]
        slug, warning = ralph.slug_for(name, f"/w/{name}")
        assert slug == f"{stem}-{digest}"
        assert warning.startswith("The directory ")

    def test_taken(self):
        digest = hashlib.sha256(b"/b/demo").hexdigest()
        assert ralph.slug_for("demo", "/b/demo", {"demo"}) == (
            f"demo-{digest[:6]}",
            f"The directory demo is shown as demo-{digest[:6]}: another project has that name.",
        )
        assert ralph.slug_for("demo", "/b/demo", {"demo", f"demo-{digest[:6]}"})[0] == f"demo-{digest[:7]}"


class TestReadInside:
    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "root"
        (root / "sub").mkdir(parents=True)
        (root / "sub/file").write_bytes(b"12345")
        (tmp_path / "secret").write_bytes(b"secret")
        return root

    def test_reads(self, root):
        assert ralph.read_inside(root, "sub/file", 5) == b"12345"
        assert ralph.read_inside(root, Path("sub/file"), 100) == b"12345"

    def test_a_big_file_in_pieces(self, root):
        (root / "big").write_bytes(b"x" * 700_001)
        assert len(ralph.read_inside(root, "big", 700_001)) == 700_001

    def test_the_root_itself_may_be_a_link(self, root, tmp_path):
        (tmp_path / "alias").symlink_to(root)
        assert ralph.read_inside(tmp_path / "alias", "sub/file", 5) == b"12345"

    @pytest.mark.parametrize("relative", ["none", "none/file", "sub/none", "sub/file/below"])
    def test_absent(self, root, relative):
        with pytest.raises(FileNotFoundError) as absent:
            ralph.read_inside(root, relative, 5)
        assert absent.value.filename == relative

    def test_absent_root(self, root):
        with pytest.raises(FileNotFoundError):
            ralph.read_inside(root / "none", "file", 5)

    @pytest.mark.parametrize(
        "relative",
        [
            "../secret",
            "sub/../sub/file",
            "..",
            "",
            ".",
            "/etc/passwd",
            "sub/\0",
            "a\0/b",
            "\ud800",
            "x" * 300,
        ],
    )
    def test_paths_that_are_none(self, root, relative):
        with pytest.raises(Unreadable):
            ralph.read_inside(root, relative, 5)

    def test_too_large(self, root):
        with pytest.raises(Unreadable, match="larger than 4 bytes"):
            ralph.read_inside(root, "sub/file", 4)

    def test_grows_while_it_is_read(self, root, monkeypatch):
        real = os.fstat

        def small(descriptor):
            seen = list(real(descriptor))
            seen[6] = 0
            return os.stat_result(seen)

        monkeypatch.setattr(os, "fstat", small)
        with pytest.raises(Unreadable, match="larger than 4 bytes"):
            ralph.read_inside(root, "sub/file", 4)

    @pytest.mark.parametrize("target", ["../secret", "sub/file", "absent"])
    def test_symlink(self, root, target):
        (root / "link").symlink_to(target)
        with pytest.raises(Unreadable, match="symbolic link"):
            ralph.read_inside(root, "link", 10)

    def test_linked_folder_that_leads_out(self, root, tmp_path):
        (root / "out").symlink_to(tmp_path)
        (root / "sub/up").symlink_to("../..")
        for relative in ("out/secret", "sub/up/secret"):
            with pytest.raises(Unreadable, match="leads out"):
                ralph.read_inside(root, relative, 10)

    def test_a_neighbour_with_the_same_beginning_is_outside(self, root, tmp_path):
        (tmp_path / "root-two").mkdir()
        (tmp_path / "root-two/file").write_bytes(b"x")
        (root / "near").symlink_to(tmp_path / "root-two")
        with pytest.raises(Unreadable, match="leads out"):
            ralph.read_inside(root, "near/file", 10)

    def test_a_loop_of_links(self, root):
        (root / "loop").symlink_to("loop")
        with pytest.raises(Unreadable):
            ralph.read_inside(root, "loop/file", 10)

    def test_a_folder_swapped_for_a_link_after_the_check(self, root, tmp_path, monkeypatch):
        real = os.open

        def swap(path, flags, **keywords):
            if path == "sub":
                (root / "sub").rename(tmp_path / "moved")
                (root / "sub").symlink_to(tmp_path / "moved")
            return real(path, flags, **keywords)

        monkeypatch.setattr(os, "open", swap)
        with pytest.raises(OSError):
            ralph.read_inside(root, "sub/file", 10)

    def test_fifo_does_not_block(self, root):
        os.mkfifo(root / "fifo")
        with pytest.raises(Unreadable, match="not a regular file"):
            ralph.read_inside(root, "fifo", 10)

    def test_directory(self, root):
        with pytest.raises(Unreadable, match="not a regular file"):
            ralph.read_inside(root, "sub", 10)

    def test_an_input_output_error(self):
        with pytest.raises(Unreadable, match="cannot be read: input/output error"):
            ralph.read_inside(Path("/proc/self"), "mem", 10)

    def test_permission_denied_by_the_kernel(self, root, monkeypatch):
        real = os.open

        def refuse(path, flags, **keywords):
            if path == "file":
                raise PermissionError(13, "Permission denied")
            return real(path, flags, **keywords)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(Unreadable, match="permission denied"):
            ralph.read_inside(root, "sub/file", 10)

    def test_no_descriptor_is_left_open(self, root):
        os.mkfifo(root / "fifo")
        (root / "link").symlink_to("sub/file")
        before = len(os.listdir("/proc/self/fd"))
        for relative in ("sub/file", "sub", "fifo", "link", "none", "sub/none/x", "../x", "sub/\0"):
            for limit in (1, 10):
                with contextlib.suppress(OSError):
                    ralph.read_inside(root, relative, limit)
        ralph.find_prd(root)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_open_inside_gives_a_descriptor(self, root):
        descriptor = ralph.open_inside(root, "sub/file")
        try:
            assert os.read(descriptor, 10) == b"12345"
            assert not os.get_inheritable(descriptor)
        finally:
            os.close(descriptor)


class TestSmallFormats:
    @pytest.mark.parametrize(
        ("data", "pid"),
        [
            (b"123", 123),
            (b" 123\r\n", 123),
            (b"2", 2),
            (b"4194304", 4194304),
            (b"007", 7),
            (b"4194305", None),
            (b"1", None),
            (b"0", None),
            (b"-5", None),
            (b"+5", None),
            (b"", None),
            (b"12 34", None),
            (b"1_0", None),
            (b"12.0", None),
            (b"0x10", None),
            (b"9" * 5000, None),
            ("١٢".encode(), None),
            (b"\xff", None),
        ],
    )
    def test_pid(self, data, pid):
        assert ralph.parse_pid(data) == pid

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            ("iteration-12.log", 12),
            ("iteration-012.log", 12),
            ("iteration-0.log", 0),
            ("iteration-1000000000.log", 10**9),
            ("iteration-1000000001.log", None),
            ("iteration-" + "0" * 200 + "7.log", 7),
            ("iteration-" + "9" * 5000 + ".log", None),
            ("iteration-.log", None),
            ("iteration--1.log", None),
            ("iteration-1.log\n", None),
            ("iteration-1.log.gz", None),
            ("Iteration-1.log", None),
            ("iteration-١.log", None),
            ("progress.txt", None),
        ],
    )
    def test_iteration(self, name, number):
        assert ralph.iteration_number(name) == number

    def test_headings(self):
        text = (
            "# Progress\r\n"
            "## Codebase Patterns\n"
            "- a - b\n"
            "## 2026-01-05 - US-001\r\n"
            "text\n"
            "## [2026-01-06 10:30] - [US-002]\n"
            "### 2026-01-06 - US-009\n"
            "## Mon Jan 5 2026 – US-003: a title - with a dash\n"
            "## Notes - general\n"
            "##2026-01-05 - US-004\n"
            "## 2026-01-07 -\n"
            "## 2026-01-07T08:00:00Z — `US-005` done\n"
        )
        assert ralph.progress_headings(text) == [
            ralph.Heading(4, "2026-01-05", "US-001"),
            ralph.Heading(6, "2026-01-06 10:30", "US-002"),
            ralph.Heading(8, "Mon Jan 5 2026", "US-003"),
            ralph.Heading(12, "2026-01-07T08:00:00Z", "US-005"),
        ]


HOLDER = """
import sys, time
from pathlib import Path
from projects.ralph import project_lock
with project_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_second_attempt_is_refused_and_nothing_is_left_behind(self, tmp_path):
        with ralph.project_lock(tmp_path):
            with pytest.raises(ProjectBusy), ralph.project_lock(tmp_path):
                pass
            assert list(tmp_path.iterdir()) == []
        with ralph.project_lock(tmp_path):
            pass

    def test_released_after_an_error(self, tmp_path):
        with pytest.raises(ValueError), ralph.project_lock(tmp_path):
            raise ValueError
        with ralph.project_lock(tmp_path):
            pass

    def test_other_projects_are_free(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with ralph.project_lock(tmp_path / "a"), ralph.project_lock(tmp_path / "b"):
            pass

    def test_not_a_directory(self, tmp_path):
        (tmp_path / "file").touch()
        for root in (tmp_path / "file", tmp_path / "none"):
            with pytest.raises(OSError), ralph.project_lock(root):
                pass

    def test_released_while_a_child_holds_a_copy_of_the_descriptor(self, tmp_path):
        reader, writer = os.pipe()
        with ralph.project_lock(tmp_path):
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
        try:
            with ralph.project_lock(tmp_path):
                pass
        finally:
            os.close(writer)
            os.close(reader)
            os.waitpid(child, 0)

    def test_another_process_killed_with_9(self, tmp_path):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ProjectBusy), ralph.project_lock(tmp_path):
                pass
        finally:
            holder.kill()
            holder.wait(10)
            holder.stdout.close()
        with ralph.project_lock(tmp_path):
            pass
