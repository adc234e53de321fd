"""What events and times say to a person."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils.html import conditional_escape
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from projects.sentences import SENTENCES, length, sentence
from projects.templatetags.andon import age, duration, status_word, visible

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["<b>", "<b>é", "<b>\u202e"])
def test_what_others_wrote_is_escaped_whatever_mark_it_bears(text):
    assert conditional_escape(visible(mark_safe(text))).startswith("&lt;b&gt;")


def test_a_title_stands_for_the_name_and_leaves_room_for_what_happened():
    assert sentence("task.completed", "task:t_1", {}, "Paint 100 % of it") == "“Paint 100 % of it” is done"
    told = sentence("task.blocked", "task:t_1", {"block_kind": "needs_input", "reason": "red?"}, "x" * 500)
    assert told.endswith("…” needs an answer: red?")
    assert len(told) < 160


@pytest.mark.parametrize(
    ("kind", "subject", "payload", "said"),
    [
        ("story.passed", "story:demo/US-1", {}, "US-1 passed in demo"),
        ("story.passed", "story:demo/US-1", {"title": "Open up"}, "US-1 passed in demo: Open up"),
        ("story.failed", "story:demo/a/b", {"reason": "no"}, "a/b failed in demo: no"),
        ("iteration.finished", "iteration:demo/4", {"duration_s": 372.4}, "Iteration 4 of demo took 6 min 12 s"),
        ("iteration.finished", "iteration:demo/4", {}, "Iteration 4 of demo finished"),
        ("loop.stalled", "project:demo", {"quiet_s": 840}, "demo has been quiet for 14 min"),
        ("project.changed", "project:demo", {"changed": ["prd", "log"]}, "demo changed: prd, log"),
        ("turn.completed", "turn:s-1/t/1", {}, "Turn t/1 of s-1 completed"),
        ("turn.interrupted", "turn:s-1/t1", {"reason": "late"}, "Turn t1 of s-1 was interrupted: late"),
        (
            "turn.collided",
            "turn:s/t",
            {"ends": ["completed", "interrupted"]},
            "Turn t of s ended more than once: completed, interrupted",
        ),
        ("turn.collided", "turn:s/t", {}, "Turn t of s ended more than once"),
        ("journal.recovered", "session:", {"added": 2}, "2 turns without an end were called interrupted"),
        (
            "journal.recovered",
            "session:",
            {"added": 1, "failed": ["a", "b"]},
            "1 turn without an end was called interrupted; not in a, b",
        ),
        ("journal.unreadable", "session:s-1", {"reason": "a pipe"}, "The journal of s-1 cannot be read: a pipe"),
        ("token.issued", "token:3", {"name": "ci"}, "Token ci made"),
        ("service.declared", "service:demo/web", {"cmd": "npm"}, "demo/web declared: npm"),
        ("loop.declared", "project:demo", {"cmd": "ralph"}, "Loop of demo is to be started"),
        (
            "service.rejected",
            "project:demo",
            {"reason": "specs-empty"},
            "A declaration in demo was refused: specs-empty",
        ),
        ("task.created", "task:t_1", {"status": "todo"}, "t_1 made: to do"),
        ("task.commented", "task:t_1", {"author": "run:t_1/2"}, "The worker of t_1 commented"),
        ("task.commented", "task:t_1", {"author": "anna"}, "anna commented on t_1"),
        ("task.created", "task:t_1", {"status": "ready", "assignee": "demo"}, "t_1 made for demo: ready"),
        ("task.claimed", "task:t_1", {"profile": "demo"}, "t_1 is claimed for demo"),
        ("task.claimed", "task:t_1", {}, "t_1 is claimed for a worker elsewhere"),
        ("task.crashed", "task:t_1", {"error": "boom", "failures": 1}, "The worker of t_1 crashed: boom"),
        ("task.crashed", "task:t_1", {"error": "boom", "failures": 3}, "The worker of t_1 crashed (failure 3): boom"),
        ("task.blocked", "task:t_1", {"block_kind": "needs_input", "reason": "which?"}, "t_1 needs an answer: which?"),
        ("task.blocked", "task:t_1", {"block_kind": "odd"}, "t_1 is blocked"),
        (
            "task.forced",
            "task:t_1",
            {"status": "ready", "parents": ["t_2"]},
            "t_1 is forced to ready: it does not wait for t_2",
        ),
        ("task.status", "task:t_1", {"status": "triage"}, "t_1 moved to triage"),
        ("task.linked", "task:t_1", {"parent": "t_2", "child": "t_1"}, "t_1 waits for t_2"),
        ("task.assigned", "task:t_1", {}, "t_1 is given to nobody"),
        ("task.edited", "task:t_1", {"changed": ["body"]}, "t_1 changed: body"),
        ("profile.found", "profile:claude", {"node": "box"}, "The agent of profile claude was found on box"),
        ("board.paused", "board:dispatch", {}, "The dispatcher is paused"),
        ("cleanup.asked", "cleanup:box", {}, "box is to be cleaned up"),
        ("cleanup.completed", "cleanup:box", {"events": "?"}, "box is cleaned up: nothing was to go"),
        (
            "cleanup.completed",
            "cleanup:b",
            {"workspaces": 1, "processes": 2, "logs": 1, "events": 4, "task_events": 5, "deliveries": 1, "bytes": 2048},
            "b is cleaned up: 1 workspace, 2 processes that had ended, 1 log, 9 events, 1 delivery; 2.0\xa0KB of files",
        ),
        (
            "cleanup.completed",
            "cleanup:box",
            {"deliveries": 1, "failed": ["logs", "workspaces"]},
            "box is cleaned up: 1 delivery; not all of logs, workspaces",
        ),
        ("service.crashed", "service:demo/web", {"exit_code": 3}, "demo/web crashed: exit code 3"),
        ("service.crashed", "service:demo/web", {"exit_code": -9}, "demo/web crashed: SIGKILL"),
        ("service.crashed", "service:demo/web", {"exit_code": -250}, "demo/web crashed: signal 250"),
        ("service.crashed", "service:demo/web", {}, "demo/web crashed"),
        ("service.stopping", "service:demo/web", {"cause": "ttl"}, "demo/web is being stopped: ttl"),
        ("service.stopping", "service:demo/web", {"left": [7, 8]}, "demo/web is not gone yet: 7, 8"),
        (
            "service.extended",
            "service:demo/web",
            {"expires_at": "2026-11-20T12:30:59+00:00"},
            "demo/web extended until 2026-11-20 12:30 UTC",
        ),
        ("loop.stopped", "project:demo", {"reason": "max_cost"}, "Loop of demo stopped: the limit of cost is reached"),
        ("loop.stopped", "project:demo", {"killed": True}, "Loop of demo stopped: it had to be killed"),
        ("loop.crashed", "project:demo", {"exit_code": -9}, "Loop of demo crashed: SIGKILL"),
        ("loop.completed", "project:demo", {"reason": "odd"}, "Loop of demo completed: odd"),
        (
            "loop.budget_set",
            "project:demo",
            {"max_iterations": 3, "max_cost_usd": 2.5},
            "Budget of demo set: 3 iterations, $2.5",
        ),
        ("loop.budget_set", "project:demo", {}, "Budget of demo set: as it is started"),
        (
            "rollback.completed",
            "project:demo",
            {"commit": "abcdef0123456789", "story": "US-1"},
            "Rolled back abcdef012345 in demo, US-1 is open again",
        ),
        ("new.kind", "x:y", {"a": 1, "b": [1, 2], "via": "api", "address": "::1"}, "a: 1 · b: 1, 2"),
    ],
)
def test_sentences(kind, subject, payload, said):
    assert sentence(kind, subject, payload) == said


@given(
    st.sampled_from(sorted(SENTENCES)),
    st.text(max_size=40),
    st.dictionaries(
        st.sampled_from(
            [
                *("reason", "duration_s", "quiet_s", "changed", "name", "error", "passed", "exit_code", "left"),
                *("expires_at", "commit", "story", "killed", "max_iterations", "max_cost_usd"),
                *("status", "assignee", "parents", "block_kind", "failures", "profile", "author", "parent", "node"),
            ]
        ),
        st.none() | st.text() | st.integers() | st.lists(st.text()),
    ),
)
def test_no_payload_breaks_a_sentence(kind, subject, payload):
    if not isinstance(payload.get("changed", []), list):
        payload.pop("changed")
    assert isinstance(sentence(kind, subject, payload), str)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (11100, "3 h 5 min"),
        (200000, "2 d"),
    ],
)
def test_lengths(seconds, said):
    assert length(seconds) == duration(seconds) == said


@pytest.mark.parametrize(
    ("away", "said"),
    [(0, "just now"), (1, "just now"), (12, "12 s ago"), (240, "4 min ago"), (11000, "3 h ago"), (-300, "in 5 min")],
)
def test_ages(away, said):
    assert age(NOW - timedelta(seconds=away), NOW) == said


def test_an_unknown_state_stands_for_itself():
    assert (status_word("in_progress"), status_word("strange")) == ("In progress", "strange")
