"""Runs, sums, registry and merge queue: what a history says, told apart as far as it lets itself be."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import history
from projects.history import Line, Outcome, Run, Runs

pytestmark = pytest.mark.pure
# A busy machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def line(kind, number=0, *, run="", pid=None, **fields) -> Line:
    data = {key: value for key, value in {"run": run, "pid": pid}.items() if value}
    return Line(kind, fields, data, AT + timedelta(seconds=number))


def runs_of(*lines: Line) -> list[Run]:
    runs = Runs()
    for number, each in enumerate(lines, 1):
        runs.feed(each, number)
    return runs.all


def outcomes(*lines: Line, alive=False) -> list[str]:
    return [str(run.outcome(alive=alive)) for run in runs_of(*lines)]


START = line("loop_started", prompt="p")


class TestRecording:
    def test_each_kind_has_its_fields_in_order(self, tmp_path):
        calls = [
            (history.record_loop_started(tmp_path, "do", at=AT), {"kind": "loop_started", "prompt": "do"}),
            (history.record_iteration_started(tmp_path, 1, at=AT), {"kind": "iteration_started", "iteration": 1}),
            (
                history.record_event_published(tmp_path, "t", "p", at=AT),
                {"kind": "event_published", "topic": "t", "payload": "p"},
            ),
            (
                history.record_iteration_completed(tmp_path, 1, success=True, at=AT),
                {"kind": "iteration_completed", "iteration": 1, "success": True},
            ),
            (
                history.record_loop_completed(tmp_path, "stopped", at=AT),
                {"kind": "loop_completed", "reason": "stopped"},
            ),
            (history.record_loop_resumed(tmp_path, 1, at=AT), {"kind": "loop_resumed", "from_iteration": 1}),
            (
                history.record_loop_terminated(tmp_path, "SIGTERM", at=AT),
                {"kind": "loop_terminated", "signal": "SIGTERM"},
            ),
            (history.record_merge_queued(tmp_path, at=AT), {"kind": "merge_queued"}),
            (history.record_merge_started(tmp_path, 7, at=AT), {"kind": "merge_started", "pid": 7}),
            (history.record_merge_completed(tmp_path, "abc", at=AT), {"kind": "merge_completed", "commit": "abc"}),
            (history.record_merge_failed(tmp_path, "why", at=AT), {"kind": "merge_failed", "reason": "why"}),
            (history.record_loop_discarded(tmp_path, "why", at=AT), {"kind": "loop_discarded", "reason": "why"}),
        ]
        assert {said["kind"] for _, said in calls} == set(history.KINDS)
        for written, said in calls:
            expected = json.dumps({"ts": "2026-01-02T03:04:05Z", "type": said}, separators=(",", ":"))
            assert written == expected.encode() + b"\n"
            assert history.wrong_with(said.pop("kind"), said) == ""
        assert (tmp_path / history.HISTORY).read_bytes() == b"".join(written for written, _ in calls)
        assert len(history.read(tmp_path, 99).events) == 12

    @pytest.mark.parametrize(
        ("kind", "fields", "wrong"),
        [
            ("nothing", {}, "its kind is none of"),
            ("loop_started", {}, "needs prompt, a text"),
            ("iteration_started", {"iteration": True}, "needs iteration, a number"),
            ("iteration_completed", {"iteration": 1, "success": 1}, "needs success, true or false"),
            ("merge_queued", {"b": 1, "a": 2}, "has no a, b"),
        ],
    )
    def test_what_is_wrong_is_said_in_words(self, kind, fields, wrong):
        assert wrong in history.wrong_with(kind, fields)


class TestReading:
    def test_the_last_events_and_what_all_of_them_add_up_to(self, tmp_path):
        for number in range(1, 6):
            history.record_iteration_completed(tmp_path, number, success=number != 3, at=AT)
        with (tmp_path / history.HISTORY).open("ab") as stream:
            stream.write(b'{"ts":"x"}\n{"type":{"kind":"invented","a":1}}\n{"torn')
        found = history.read(tmp_path, 2)
        assert [event["type"]["kind"] for event in found.events] == ["iteration_completed", "invented"]
        assert [each["kind"] for each in found.malformed] == ["shape", "torn"]
        assert (found.summary.iterations_completed, found.summary.iterations_failed) == (5, 1)
        assert found.runs[0].iterations_completed == 5

    def test_a_lock_that_nobody_lets_go_does_not_hold_us_up(self, tmp_path):
        import fcntl
        import time

        history.record_merge_queued(tmp_path, at=AT)
        with (tmp_path / ".ralph/history.jsonl.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            started = time.monotonic()
            assert len(history.read(tmp_path, 9).events) == 1
            assert time.monotonic() - started < 3

    def test_without_a_history(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            history.read(tmp_path, 9)

    @settings(CALM, max_examples=50)
    @given(content=st.binary(max_size=200))
    def test_any_bytes(self, tmp_path_factory, content):
        root = tmp_path_factory.mktemp("any")
        (root / ".ralph").mkdir()
        (root / history.HISTORY).write_bytes(content + b'\n{"type":{"kind":"merge_queued"}}\n')
        for name in ("merge-queue.jsonl", "loops.json"):
            (root / ".ralph" / name).write_bytes(content)
        assert history.read(root, 99).events[-1] == {"type": {"kind": "merge_queued"}}
        history.read_merges(root)
        history.read_registry(root, booted_at=AT, is_alive=lambda *_: None)


class TestSummed:
    def test_the_last_start_and_the_sums_of_all(self):
        lines = [
            line("loop_started", 0, prompt="first"),
            line("event_published", 1, topic="t", payload="p"),
            line("iteration_completed", 2, iteration=7, success=False),
            line("loop_terminated", 3, signal="SIGTERM"),
            line("loop_started", 4, prompt="second"),
            line("iteration_completed", 5, iteration=2, success=True),
            line("event_published", 6, topic="t", payload="p"),
            line("loop_completed", 7, reason="max_cost"),
            line("merge_failed", 8, reason="conflict"),
        ]
        found = history.summary(lines).told()
        assert found == {
            "prompt": "second",
            "started_at": "2026-01-02T03:04:09Z",
            "iterations_completed": 2,
            "iterations_failed": 1,
            "events_published": 2,
            "completed": True,
            "completion_reason": "max_cost",
            "ended_at": "2026-01-02T03:04:12Z",
            "terminated": True,
            "termination_signal": "SIGTERM",
            "merge_commit": None,
            "merge_failed": True,
            "merge_failure_reason": "conflict",
        }
        after = history.summary([*lines, line("merge_completed", 9, commit="abc")])
        assert (after.merge_commit, after.merge_failed, after.merge_failure_reason) == ("abc", False, None)
        assert history.get_prompt(lines) == "first"

    def test_last_iteration_in_file_order_failed_ones_too(self):
        assert history.last_iteration([]) is None
        lines = [line("iteration_completed", iteration=n, success=n != 2) for n in (5, 2)]
        assert history.last_iteration([*lines, line("iteration_completed", iteration="x")]) == 2

    @pytest.mark.parametrize(
        ("kinds", "done"),
        [
            ([], False),
            (["loop_completed"], True),
            (["loop_completed", "iteration_started"], True),
            (["loop_terminated", "loop_completed"], True),
            (["loop_completed", "loop_terminated"], False),
            (["loop_completed", "loop_discarded"], False),
        ],
    )
    def test_whether_it_is_complete_is_told_from_its_end(self, kinds, done):
        assert history.is_completed([line(kind) for kind in kinds]) is done


class TestRuns:
    @pytest.mark.parametrize(
        ("reason", "outcome"),
        [
            ("completion_promise", "success"),
            ("max_iterations", "limit"),
            ("max_runtime", "limit"),
            ("max_cost", "limit"),
            ("consecutive_failures", "failed"),
            ("loop_thrashing", "failed"),
            ("loop_stale", "failed"),
            ("validation_failure", "failed"),
            ("workspace_gone", "failed"),
            ("stopped", "stopped"),
            ("cancelled", "stopped"),
            ("restart_requested", "stopped"),
            ("invented", "unknown"),
        ],
    )
    def test_a_reason_is_an_outcome(self, reason, outcome):
        assert outcomes(START, line("loop_completed", reason=reason)) == [outcome]

    def test_of_a_signal_of_nothing_and_of_life(self):
        assert outcomes(START, line("loop_terminated", signal="SIGINT")) == ["interrupted"]
        assert outcomes(START) == ["crashed"]
        assert outcomes(START, alive=True) == ["running"]
        assert outcomes(START, line("loop_discarded", reason="no")) == ["stopped"]

    def test_an_end_between_two_open_runs_is_neithers(self):
        first, second = runs_of(START, START, line("loop_completed", reason="max_cost"))
        assert (first.ambiguous, second.ambiguous) == (True, True)
        assert first.outcome(alive=True) == second.outcome(alive=True) == Outcome.UNKNOWN

    def test_later_runs_are_not_spoiled_by_it(self):
        end = line("loop_completed", reason="completion_promise")
        runs = runs_of(START, START, end, end, START, end)
        assert [run.ambiguous for run in runs] == [True, True, False]
        assert [run.ended_by for run in runs] == ["", "", "loop_completed"]

    def test_an_id_tells_interleaved_runs_apart(self):
        runs = runs_of(
            line("loop_started", run="a", prompt="p", pid=5),
            line("loop_started", run="b", prompt="p"),
            line("iteration_completed", run="a", iteration=1, success=False),
            line("loop_completed", run="a", reason="max_cost"),
            line("iteration_completed", run="b", iteration=1, success=True),
            line("loop_completed", run="b", reason="completion_promise"),
        )
        assert [(run.key, run.reason, run.iterations_failed, run.pid) for run in runs] == [
            ("a", "max_cost", 1, 5),
            ("b", "completion_promise", 0, None),
        ]

    def test_resumed_goes_on(self):
        [run] = runs_of(
            line("loop_started", run="a", prompt="p"),
            line("loop_terminated", 1, run="a", signal="SIGTERM"),
            line("loop_resumed", 2, run="a", from_iteration=1, pid=9),
            line("iteration_started", 3, run="a", iteration=2),
        )
        assert (run.resumed, run.is_open, run.pid, run.ended_at, run.iterations_started) == (1, True, 9, None, 1)
        [run] = runs_of(START, line("loop_completed", reason="stopped"), line("loop_resumed", from_iteration=1))
        assert run.is_open

    def test_a_history_that_begins_in_the_middle(self):
        [run] = runs_of(
            line("iteration_completed", iteration=4, success=True), line("loop_completed", reason="stopped")
        )
        assert (run.key, run.iteration, str(run.outcome())) == ("line:1", 4, "stopped")
        assert runs_of(line("loop_resumed", from_iteration=3))[0].resumed == 1

    def test_an_id_that_was_used_before_names_the_first(self):
        runs = runs_of(line("loop_started", run="a", prompt="1"), line("loop_started", run="a", prompt="2"))
        assert [run.key for run in runs] == ["a", "line:2"]

    def test_an_id_that_is_a_key_of_ours_is_none(self):
        runs = runs_of(line("loop_started", run=" line:2", prompt="1"), line("loop_started", prompt="2"))
        assert [run.key for run in runs] == ["line:1", "line:2"]

    def test_a_second_end_changes_nothing(self):
        [run] = runs_of(START, line("loop_completed", reason="max_cost"), line("loop_completed", reason="stopped"))
        assert run.reason == "max_cost"

    @pytest.mark.parametrize(
        ("kinds", "state"),
        [
            (["merge_queued"], "queued"),
            (["merge_queued", "merge_started"], "merging"),
            (["merge_started", "merge_failed"], "needs_review"),
            (["merge_failed", "merge_completed"], "merged"),
            (["merge_queued", "loop_discarded"], "discarded"),
        ],
    )
    def test_a_merge_on_its_way(self, kinds, state):
        said = [line(kind, reason="why", commit="abc", pid=5) for kind in kinds]
        [run] = runs_of(START, line("loop_completed", reason="completion_promise"), *said)
        assert (run.merge_state, run.ended_by) == (state, "loop_completed")
        assert run.merge_reason == ("" if state in {"queued", "merging", "merged"} else "why")

    @settings(CALM, max_examples=80)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*history.KINDS, "invented"]),
                st.sampled_from(["", "a", "b", "line:2", "line:3"]),
                st.sampled_from([None, "x", 5, True, "completion_promise"]),
            ),
            max_size=12,
        ),
        st.integers(0, 12),
    )
    def test_to_go_on_is_the_same_as_to_begin_again(self, rows, cut):
        lines = [
            line(
                kind, n, run=run, reason=value, signal=value, prompt=value, iteration=value, commit=value, success=value
            )
            for n, (kind, run, value) in enumerate(rows)
        ]
        whole = runs_of(*lines)
        before = Runs(runs_of(*lines[:cut]))
        for number, each in enumerate(lines[cut:], cut + 1):
            before.feed(each, number)
        assert before.all == whole
        assert len({run.key for run in whole}) == len(whole)
        assert all(run.told()["outcome"] in set(Outcome) for run in whole)


class TestBeside:
    def registry(self, root: Path, document, alive=True):
        (root / ".ralph").mkdir(exist_ok=True)
        (root / ".ralph/loops.json").write_text(document if isinstance(document, str) else json.dumps(document))
        return history.read_registry(root, booted_at=AT, is_alive=lambda pid, started: alive)

    @pytest.mark.parametrize(("alive", "state"), [(True, "running"), (False, "crashed"), (None, "unknown")])
    def test_a_loop_is_what_its_process_is(self, tmp_path, alive, state):
        entry = {"id": "a", "pid": 7, "started": "2026-01-02T04:00:00Z", "prompt": "p", "worktree_path": "w"}
        [loop], problem = self.registry(tmp_path, {"loops": [entry]}, alive)
        assert (loop.id, loop.pid, loop.prompt, loop.worktree, loop.state, problem) == ("a", 7, "p", "w", state, "")

    def test_a_loop_is_the_same_after_it_was_kept_as_json(self, tmp_path):
        entries = [{"id": "a", "pid": 7, "started": "9999-12-31T23:59:59Z", "prompt": "\0\ud800p"}, {}]
        loops, _ = self.registry(tmp_path, entries)
        assert [history.Loop.of(json.loads(json.dumps(loop.told()))) for loop in loops] == loops

    @pytest.mark.parametrize(
        "entry", [{"pid": 7, "started": "2026-01-02T03:00:00Z"}, {"pid": "7"}, {"pid": 1}, {"pid": True}, {}]
    )
    def test_a_pid_of_another_boot_or_none_is_nobodys(self, tmp_path, entry):
        assert self.registry(tmp_path, [entry])[0][0].state == "crashed"

    @pytest.mark.parametrize("document", ["{", "7", '{"loops": 5}', "[" * 5000, "\0"])
    def test_what_is_no_registry_is_a_sentence(self, tmp_path, document):
        loops, problem = self.registry(tmp_path, document)
        assert loops == []
        assert ".ralph/loops.json" in problem
        assert self.registry(tmp_path, [5, None])[0] == []

    def test_without_the_files(self, tmp_path):
        assert history.read_registry(tmp_path, booted_at=AT, is_alive=lambda *_: True) == ([], "")
        assert history.read_merges(tmp_path) == history.Merges([], [])

    def test_one_bad_line_is_a_finding_and_not_the_end(self, tmp_path):
        (tmp_path / ".ralph").mkdir()
        rows = [
            {"ts": "2026-01-02T03:04:05Z", "loop_id": "a", "event": {"type": "queued"}},
            {"loop_id": "b", "event": {"type": "queued"}},
            {"loop_id": "a", "event": {"type": "needs_review", "reason": "conflict"}},
            {"loop_id": "a", "event": {"type": "invented"}},
            {"loop_id": 5, "event": {"type": "queued"}},
            {"loop_id": "b", "event": {"type": "needs_review", "reason": "tests"}},
            {"loop_id": "b", "event": {"type": "merged", "commit": "abc"}},
        ]
        text = "\n".join(map(json.dumps, rows)) + "\n{\n"
        (tmp_path / ".ralph/merge-queue.jsonl").write_text(text)
        found = history.read_merges(tmp_path)
        assert [(each.loop, str(each.state), each.commit, each.reason) for each in found.entries] == [
            ("a", "needs_review", "", "conflict"),
            ("b", "merged", "abc", ""),
        ]
        assert [each["kind"] for each in found.malformed] == ["shape", "shape", "json"]
