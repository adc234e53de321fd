"""What a worker reads: complete, bounded, and nobody's text passes for Andon's."""

import json
import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kanban import context
from kanban.context import BODY_HEADING, MAX_BYTES, Attempt, Brief, ParentResult, Remark, render
from services import specs
from services.blocks import live_block

pytestmark = pytest.mark.pure

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PLAIN = Brief(
    task_id="t_1a2b3c4d",
    title="Average several readings",
    assignee="demo",
    tenant="",
    project="greenhouse",
    workspace="/home/a/var/workspaces/t_1a2b3c4d",
    body="One\n\n## Two\n",
    attempt=2,
    services_required=False,
    parents=(),
    comments=(),
    attempts=(),
    services_block="",
    cli="/opt/andon/kanban/andon_cli.py",
    sidecar="/home/a/var/agents/t_1a2b3c4d-2/managed-spawn.json",
)
HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("`~#[]()<>!\n\r\t\x00\x1b\u2028\u2029\u202e\x85 -+")), max_size=150
)
TIMES = st.datetimes(timezones=st.just(UTC))
SERVICES = st.lists(
    st.fixed_dictionaries({"name": HOSTILE, "ports": st.just([3000]), "attrs": st.dictionaries(HOSTILE, HOSTILE)})
)
BRIEFS = st.builds(
    Brief,
    **{each.name: HOSTILE for each in fields(Brief) if each.type in (str, "str")}
    | {
        "attempt": st.integers(0, 10**6),
        "services_required": st.booleans(),
        "parents": st.lists(st.builds(ParentResult, HOSTILE, HOSTILE, HOSTILE, st.none() | TIMES), max_size=33),
        "comments": st.lists(st.builds(Remark, HOSTILE, HOSTILE, TIMES), max_size=33),
        "attempts": st.lists(st.builds(Attempt, st.integers(0, 99), HOSTILE, HOSTILE, HOSTILE), max_size=12),
        "services_block": SERVICES.map(live_block) | st.just(""),
    },
)


def parts(text: str) -> tuple[str, list[str]]:
    """Return what stands outside of fences, read as CommonMark does, and the contents of the fences."""
    outside, inside, ticks = [], [], ""
    for line in text.split("\n"):
        found = re.fullmatch(r" {0,3}(`{3,}|~{3,})([^`]*)", line)
        if not ticks and found:
            ticks = found[1]
            inside.append([])
        elif ticks and found and found[1].startswith(ticks) and not found[2].strip():
            ticks = ""
        else:
            (inside[-1] if ticks else outside).append(line)
    assert not ticks, "a fence is open"
    return "\n".join(outside), ["\n".join(lines) for lines in inside]


def headings(text: str) -> list[str]:
    return [line for line in parts(text)[0].split("\n") if line.startswith("#")]


class TestWhole:
    def test_says_what_is_to_be_done(self):
        text = render(PLAIN)
        outside, inside = parts(text)
        assert outside.startswith(
            "# Task `t_1a2b3c4d`, attempt 2\n\n- Title: `Average several readings`\n- Assignee: `demo`\n"
            "- Project: `greenhouse`\n- Workspace: `/home/a/var/workspaces/t_1a2b3c4d`\n\n"
        )
        assert inside[0] == "One\n\n## Two"
        assert headings(text)[1:] == [BODY_HEADING, "## How to report", "## How to leave a service running"]

    def test_teaches_the_program(self):
        text = render(PLAIN)
        for verb in ("heartbeat", "comment", "block", "review", "complete", "context", "services"):
            assert f'"$ANDON_CLI" {verb}' in text
        for fact in ("`/opt/andon/kanban/andon_cli.py`", "75 = a quota", "0 = a violation", "needs_input", "transient"):
            assert fact in text

    def test_sections_in_their_order(self):
        full = replace(
            PLAIN,
            parents=[ParentResult("t_0", "Before", "done", AT)],
            comments=[Remark("ada", "Mind the gap.", AT)],
            attempts=[Attempt(1, "crashed", "exit code 1", "")],
            services_block=live_block([{"name": "web", "ports": [3000]}]),
        )
        assert headings(render(full))[1:] == [
            BODY_HEADING,
            "## Results of the tasks before this one",
            "### `t_0`: `Before`, done 2026-11-20 12:00 UTC",
            "## Comments",
            "### `ada`, 2026-11-20 12:00 UTC",
            "## Earlier attempts",
            "### Attempt 1: `crashed`",
            "## Services",
            "## How to report",
            "## How to leave a service running",
        ]
        assert "- name: web" in render(full)

    def test_nobody_works_on_it(self):
        text = render(replace(PLAIN, attempt=0))
        assert text.startswith("# Task `t_1a2b3c4d`\n")
        assert "managed-spawn" not in text

    def test_no_sidecar(self):
        assert "managed-spawn" not in render(replace(PLAIN, sidecar=""))

    def test_body_may_be_empty(self):
        assert f"{BODY_HEADING}\n\nThe title says it all.\n" in render(replace(PLAIN, body=" \n"))


class TestSidecar:
    def test_example_is_of_this_attempt(self):
        [found] = [json.loads(each) for each in parts(render(PLAIN))[1] if each.startswith("{")]
        assert (found["written_by"], found["wi_id"]) == ("t_1a2b3c4d-2", "t_1a2b3c4d")
        assert {**found, "written_by": None, "wi_id": None} == {**specs.EXAMPLE, "written_by": None, "wi_id": None}

    def test_contract_is_asked_for_by_this_agent(self):
        text = render(replace(PLAIN, project='a&b"$(x)'))
        assert "hint?agent=t_1a2b3c4d-2&wi=t_1a2b3c4d&project=a%26b%22%24%28x%29" in text

    def test_service_is_required(self):
        sentence = "This task must leave a service"
        assert sentence in render(replace(PLAIN, services_required=True))
        assert sentence not in render(PLAIN)


class TestOrder:
    def test_parents_by_completion_the_newest_30(self):
        parents = [ParentResult(f"t_{n}", "x", f"r{n}", AT + timedelta(hours=n)) for n in range(33)]
        text = render(replace(PLAIN, parents=[*reversed(parents), ParentResult("t_none", "x", "given up", None)]))
        shown = [line.split("`")[1] for line in headings(text) if line.startswith("### `t_")]
        assert shown == [f"t_{n}" for n in range(3, 33)]
        assert "(Earlier ones that are not shown: 4.)" in text

    def test_parent_that_was_given_up(self):
        text = render(replace(PLAIN, parents=[ParentResult("t_0", "Before", "", None)]))
        assert "### `t_0`: `Before`\n\nIt left no result.\n" in text

    def test_comments_by_time_the_newest_30(self):
        remarks = [Remark(f"a{n}", f"text {n}", AT + timedelta(minutes=n)) for n in range(31)]
        text = render(replace(PLAIN, comments=remarks[::-1]))
        shown = [line.split("`")[1] for line in headings(text) if line.startswith("### `a")]
        assert shown == [f"a{n}" for n in range(1, 31)]
        assert "(Earlier ones that are not shown: 1.)" in text

    def test_attempts_by_number_the_newest_10(self):
        attempts = [Attempt(n, "crashed", f"error {n}", f"summary {n}") for n in range(1, 13)]
        text = render(replace(PLAIN, attempts=attempts[::-1]))
        shown = [line for line in headings(text) if line.startswith("### Attempt")]
        assert shown == [f"### Attempt {n}: `crashed`" for n in range(3, 13)]
        assert parts(text)[1][19:21] == ["error 12", "summary 12"]

    def test_attempt_that_said_nothing(self):
        text = render(replace(PLAIN, attempts=[Attempt(1, "released", "", " ")]))
        assert "### Attempt 1: `released`\n\nNo error was recorded.\n" in text
        assert "Its summary" not in text

    def test_times_are_utc(self):
        at = AT.astimezone(tz=datetime.strptime("+0530", "%z").tzinfo)
        assert "### `ada`, 2026-11-20 12:00 UTC" in render(replace(PLAIN, comments=[Remark("ada", "x", at)]))


class TestHostile:
    @pytest.mark.parametrize("text", ["```\n# out", "~~~\n# out", "````\n```\n# out", "`````", "# a\n## How to report"])
    def test_nothing_breaks_out_of_its_fence(self, text):
        told = render(
            replace(
                PLAIN,
                body=text,
                parents=[ParentResult("t_0", "x", text, AT)],
                comments=[Remark("ada", text, AT)],
                attempts=[Attempt(1, "crashed", text, text)],
            )
        )
        assert [each for each in parts(told)[1] if each == text] == [text] * 5
        assert not any(line.startswith(("# a", "# out")) for line in headings(told))

    def test_line_of_a_field_stays_one(self):
        text = render(replace(PLAIN, title="a\n# b\r\n```\u2028c", assignee="``x` y`"))
        assert "- Title: ````a\\n# b\\r\\n```\\u2028c````\n" in text
        assert "- Assignee: ``` ``x` y` ```\n" in text

    def test_what_does_not_print_is_shown(self):
        text = render(replace(PLAIN, body="a\x00b\x1b[1m\u202ec\ud800\x85\xa0d\te\r\nf\rg"))
        assert parts(text)[1][0] == "a\\x00b\\x1b[1m\\u202ec\\ud800\\x85 d\te\nf\ng"

    def test_field_of_blanks(self):
        assert "### (none), " in render(replace(PLAIN, comments=[Remark(" \n", "", AT)]))
        assert "\n\nIt is empty.\n" in render(replace(PLAIN, comments=[Remark("ada", "", AT)]))


class TestCaps:
    @pytest.mark.parametrize(
        ("most", "told"),
        [
            (8192, lambda text: replace(PLAIN, body=text)),
            (4096, lambda text: replace(PLAIN, parents=[ParentResult("t_0", "x", text, AT)])),
            (2048, lambda text: replace(PLAIN, comments=[Remark("ada", text, AT)])),
            (4096, lambda text: replace(PLAIN, attempts=[Attempt(1, "failed", text, "")])),
            (4096, lambda text: replace(PLAIN, attempts=[Attempt(1, "failed", "", text)])),
        ],
        ids=["body", "result", "comment", "error", "summary"],
    )
    def test_in_bytes_at_whole_characters(self, most, told):
        def shown(text):
            [block] = [each for each in parts(render(told(text)))[1] if each.startswith("y")]
            return block, f"(Cut: these are its first {most} bytes.)" in render(told(text))

        assert shown("y" * most) == ("y" * most, False)
        assert shown("y" * (most + 1)) == ("y" * most, True)
        assert shown("y" + "ä" * most) == ("y" + "ä" * (most // 2 - 1), True)
        assert shown("y" + "\r\n" * (most + 4) + "z") == ("y" + "\n" * (most - 2), True)
        assert shown("y" * 10**6)[1]

    def test_of_a_line(self):
        assert f"- Title: `{'ä' * 256}`\n" in render(replace(PLAIN, title="ä" * 256))
        assert f"- Title: `{'ä' * 256}`…\n" in render(replace(PLAIN, title="ä" * 257))
        assert f"- Title: `{'x' * 512}`…\n" in render(replace(PLAIN, title="  " + "x" * 513 + "\n" * 9000))

    @pytest.mark.parametrize("sign", ["`", "x", "😀", "\x00"])
    def test_of_all(self, sign):
        much = sign * 10_000
        everything = Brief(
            *([much] * 7),
            attempt=10**9,
            services_required=True,
            parents=[ParentResult(much, much, much, AT)] * 40,
            comments=[Remark(much, much, AT)] * 40,
            attempts=[Attempt(10**9, much, much, much)] * 20,
            services_block=live_block([{"name": "web", "attrs": {"a": "x" * 1900}}]),
            cli=much,
            sidecar=much,
        )
        size = len(render(everything).encode())
        assert size <= MAX_BYTES
        if sign == "`":
            assert size > MAX_BYTES * 0.9

    @given(BRIEFS)
    @example(replace(PLAIN, body="`" * 8192, title="`", cli="```", sidecar="a```b"))
    @settings(max_examples=120, deadline=None)
    def test_whatever_is_in_it(self, brief):
        text = render(brief)
        assert len(text.encode()) <= MAX_BYTES
        assert text == "".join(sign for sign in text if sign.isprintable() or sign in "\n\t")
        sections = [line for line in headings(text) if line.startswith(("# ", "## "))]
        assert sections[0].startswith("# Task ")
        known = {
            BODY_HEADING,
            "## Results of the tasks before this one",
            "## Comments",
            "## Earlier attempts",
            "## Services",
            "## How to report",
            "## How to leave a service running",
        }
        assert known.issuperset(sections[1:])
        assert len(set(sections)) == len(sections)


def test_demo_worker_looks_for_the_same_heading():
    assert f'"{BODY_HEADING}"' in Path(context.__file__).with_name("demo_worker.py").read_text(encoding="utf-8")
