"""Usage records: every alias, every refusal, and the envelope in an agent's raw output."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects.usage import Usage, is_quota, parse_record, result_envelope

pytestmark = pytest.mark.pure

ENVELOPE = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "duration_ms": 61_500,
    "duration_api_ms": 50_000,
    "num_turns": 12,
    "result": "Done.",
    "session_id": "0c6bb63c",
    "total_cost_usd": 0.4135,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 30,
        "output_tokens": 40,
        "server_tool_use": {"web_search_requests": 0},
        "service_tier": "standard",
    },
    "modelUsage": {"small": {"costUSD": 0.01}, "large": {"costUSD": 0.4}},
    "permission_denials": [],
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
known_keys = st.sampled_from(
    [
        *("ts", "timestamp", "date", "project", "story", "story_id", "iteration", "iter", "run"),
        *("total_cost_usd", "cost", "costUSD", "usage", "tokens", "inputTokens", "output_tokens"),
        *("duration_ms", "durationSeconds", "num_turns", "subtype", "is_error", "status", "exit_code"),
        *("session_id", "model", "modelUsage", "result", "error", "rate_limited"),
    ]
)


class TestRecord:
    def test_a_coding_agents_envelope_as_it_is(self):
        assert parse_record(ENVELOPE) == Usage(
            cost=Decimal("0.4135"),
            input_tokens=10,
            output_tokens=40,
            cache_creation_tokens=20,
            cache_read_tokens=30,
            duration_s=61.5,
            duration_api_s=50.0,
            num_turns=12,
            is_error=False,
            subtype="success",
            session_id="0c6bb63c",
            model="large",
        )

    def test_nothing_is_required_and_nothing_is_invented(self):
        assert parse_record({}) == Usage()
        assert parse_record({"cost": None, "usage": None, "unknown": [1]}) == Usage()

    @pytest.mark.parametrize("name", ["total_cost_usd", "cost_usd", "cost", "costUSD"])
    def test_names_of_cost(self, name):
        assert parse_record({name: 0.1}).cost == Decimal("0.1")

    def test_a_cost_of_zero_is_known(self):
        assert parse_record({"cost": 0}).cost == 0
        assert parse_record({}).cost is None

    def test_a_cost_as_text_keeps_every_digit(self):
        assert parse_record({"cost": "0.100000000000000001"}).cost == Decimal("0.100000000000000001")

    @pytest.mark.parametrize("name", ["ts", "timestamp", "date"])
    @pytest.mark.parametrize(
        "value",
        [
            "2026-01-02T03:04:05Z",
            "2026-01-02T05:04:05+02:00",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05.000000000Z",
            1767323045,
            1767323045000,
            1767323045.0,
        ],
    )
    def test_names_and_forms_of_time(self, name, value):
        assert parse_record({name: value}).time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    @pytest.mark.parametrize("name", ["story", "story_id", "storyId", "task_id"])
    def test_names_of_the_story(self, name):
        assert parse_record({name: "US-001"}).story == "US-001"
        assert parse_record({name: 7}).story == "7"

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("input_tokens", "input_tokens"),
            ("inputTokens", "input_tokens"),
            ("output_tokens", "output_tokens"),
            ("outputTokens", "output_tokens"),
            ("cache_creation_input_tokens", "cache_creation_tokens"),
            ("cacheCreationInputTokens", "cache_creation_tokens"),
            ("cache_read_input_tokens", "cache_read_tokens"),
            ("cacheReadInputTokens", "cache_read_tokens"),
        ],
    )
    @pytest.mark.parametrize("place", [None, "usage", "tokens"])
    def test_names_and_places_of_tokens(self, name, field, place):
        record = {place: {name: 5}} if place else {name: 5}
        assert getattr(parse_record(record), field) == 5

    @pytest.mark.parametrize(
        ("record", "field", "value"),
        [
            ({"slug": "demo"}, "project", "demo"),
            ({"project": "demo"}, "project", "demo"),
            ({"iter": 3}, "iteration", 3),
            ({"durationSeconds": 1.5}, "duration_s", 1.5),
            ({"exit_code": -15}, "exit_code", -15),
            ({"status": "ok"}, "status", "ok"),
            ({"model": "m", "modelUsage": {"n": {}}}, "model", "m"),
            ({"modelUsage": {"n": None}}, "model", "n"),
            ({"run": "r"}, "run", "r"),
        ],
    )
    def test_the_other_names(self, record, field, value):
        assert getattr(parse_record(record), field) == value

    @pytest.mark.parametrize("bad", [-0.01, math.nan, math.inf, True, "1e3", "$1", "", [], {}, 1e9, 10**400])
    def test_a_cost_that_makes_no_sense_is_refused(self, bad):
        with pytest.raises(ValueError, match="cost"):
            parse_record({"cost": bad})

    @pytest.mark.parametrize("bad", [-1, 1.5, math.nan, True, "5", 10**13, [1]])
    @pytest.mark.parametrize("name", ["input_tokens", "num_turns"])
    def test_a_count_that_makes_no_sense_is_refused(self, name, bad):
        with pytest.raises(ValueError, match=name):
            parse_record({name: bad})

    @pytest.mark.parametrize(
        "bad", [True, "yesterday", -1, math.nan, 1e30, 10**400, "1969-07-20", "9999-12-31T23:59:59-01:00", []]
    )
    def test_a_time_that_makes_no_sense_is_refused(self, bad):
        with pytest.raises(ValueError, match="ts"):
            parse_record({"ts": bad})

    @pytest.mark.parametrize(
        "record",
        [
            {"is_error": "no"},
            {"is_error": 1},
            {"session_id": True},
            {"session_id": "x" * 600},
            {"model": ["m"]},
            {"duration_ms": -1},
            {"duration_ms": 1e15},
            {"iteration": -1},
        ],
    )
    def test_the_rest_that_makes_no_sense_is_refused(self, record):
        with pytest.raises(ValueError, match=next(iter(record))):
            parse_record(record)

    @pytest.mark.parametrize("bad", [None, [], "x", 3])
    def test_what_is_not_an_object_is_refused(self, bad):
        with pytest.raises(ValueError, match="object"):
            parse_record(bad)

    # A busy machine generates slowly.
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(known_keys, json_values))
    def test_any_json_is_a_record_or_a_reason(self, record):
        try:
            usage = parse_record(record)
        except ValueError:
            return
        assert usage.cost is None or (usage.cost.is_finite() and usage.cost >= 0)
        assert usage.time is None or usage.time.utcoffset().total_seconds() == 0

    @given(st.decimals(0, 1000, places=6))
    def test_money_survives_json(self, cost):
        assert parse_record(json.loads(json.dumps({"cost": float(cost)}))).cost == cost

    @pytest.mark.parametrize(
        ("name", "field"),
        [("project", "project"), ("story", "story"), ("model", "model"), ("run", "run"), ("status", "status")],
    )
    def test_a_long_text_is_cut_and_the_cost_still_counts(self, name, field):
        usage = parse_record({name: "x" * 1_000_000, "cost": 1})
        assert (getattr(usage, field), usage.cost) == ("x" * 512, 1)

    def test_a_price_of_a_model_that_is_absurd_says_nothing(self):
        prices = {"huge": 10**400, "nan": math.nan, "less": -1, "text": "5", "dear": 2, "cheap": 1}
        record = {"modelUsage": {name: {"costUSD": price} for name, price in prices.items()}}
        assert parse_record(record).model == "dear"
        assert parse_record({"modelUsage": {"": {}}}).model is None

    @pytest.mark.parametrize(
        ("record", "failed"),
        [
            ({}, False),
            ({"is_error": True}, True),
            ({"exit_code": 1}, True),
            ({"exit_code": 0, "is_error": False, "subtype": "success"}, False),
            ({"subtype": "error_max_turns"}, True),
            ({"status": "failed"}, True),
            ({"is_error": True, "result": "usage limit reached"}, True),
        ],
    )
    def test_says_whether_it_failed(self, record, failed):
        assert parse_record(record).failed is failed


class TestQuota:
    @pytest.mark.parametrize(
        "text",
        [
            "Claude AI usage limit reached|1755900000",
            "You've hit your limit · resets 3pm",
            "5-hour limit reached",
            'API Error: 429 {"type":"error","error":{"type":"rate_limit_error"}}',
            "HTTP 429",
            "429",
            "429 Too Many Requests",
            "Overloaded",
            "API Error: 529 overloaded_error",
            "You exceeded your current quota",
            "RESOURCE_EXHAUSTED",
            "Rate limit exceeded",
        ],
    )
    def test_is_one(self, text):
        assert is_quota(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "429 passed, 1 failed",
            'File "a.py", line 429, in f',
            "FAILED tests/test_api.py::test_rate_limit",
            "error: 14290 bytes",
            "Segmentation fault",
        ],
    )
    def test_is_none(self, text):
        assert not is_quota(text)

    def test_only_a_failed_record_is_rate_limited(self):
        text = {"result": "usage limit reached"}
        assert parse_record({**text, "is_error": True}).rate_limited
        assert parse_record({**text, "exit_code": 1}).rate_limited
        assert parse_record({**text, "subtype": "error_during_execution"}).rate_limited
        assert not parse_record({**text, "is_error": False}).rate_limited
        assert parse_record({"is_error": True, "error": {"message": "Overloaded"}}).rate_limited
        assert parse_record({"rate_limited": True}).rate_limited


class TestEnvelope:
    def test_alone(self):
        assert result_envelope(json.dumps(ENVELOPE).encode()) == ENVELOPE

    def test_on_a_line_among_others(self):
        output = b"warning: x\n" + json.dumps(ENVELOPE).encode() + b"\r\nbye\n"
        assert result_envelope(output) == ENVELOPE

    def test_the_last_one_wins(self):
        first, last = ({"type": "result", "num_turns": number} for number in (1, 2))
        assert result_envelope(f"{json.dumps(first)}\n{json.dumps(last)}\n".encode()) == last

    def test_a_document_over_many_lines(self):
        assert result_envelope(json.dumps(ENVELOPE, indent=2).encode()) == ENVELOPE

    @pytest.mark.parametrize("indent", [None, 2])
    def test_in_an_array(self, indent):
        messages = [{"type": "system"}, ENVELOPE, {"type": "result", "n": 2}, {"type": "other"}, 3]
        assert result_envelope(json.dumps(messages, indent=indent).encode()) == {"type": "result", "n": 2}

    @pytest.mark.parametrize(
        "output",
        [
            b"",
            b"done",
            b'{"type": "assistant", "text": "result"}',
            b'I print {"type": "result"} here',
            b'{"type": "user", "inner": {"type": "result"}}',
            b'{"type": "result"',
            b"[" * 100_000 + b'"result"',
            b'{"n": ' + b"9" * 5000 + b', "type": "result"}',
            b'\xff{"type": "result"}',
        ],
    )
    def test_none(self, output):
        assert result_envelope(output) is None

    @given(st.binary() | st.text().map(str.encode))
    def test_any_bytes(self, output):
        assert result_envelope(output) is None
