"""What the next agent reads: the block of healthy services, and the text that teaches the contract."""

import json
import re

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projects.events import SWEEP
from services import lifecycle, queries, specs
from services.blocks import CLOSING, EMPTY, MAX_BYTES, OPENING, live_block
from services.states import Purpose
from tests.services.rows import HTTP, declared, failed, healthy, launched, refused, spawned

URL = "/api/managed-processes"
HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("`~#[]()<>!\n\r\t\x00\x1b\u2028\u2029\u202e\x85 -+")), max_size=120
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), HOSTILE),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(HOSTILE, inner, max_size=4)),
    max_leaves=10,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "name": HOSTILE,
            "ports": st.lists(st.integers(1024, 65535), max_size=25),
            "ttl_expires_at": st.none() | st.integers(0, 4_102_444_800_000),
            "attrs": st.dictionaries(HOSTILE, JSON, max_size=4),
            "healthcheck": st.fixed_dictionaries({"type": st.just("http"), "url": HOSTILE}) | st.just({"type": "tcp"}),
        }
    ),
    max_size=60,
)
LINE = re.compile(r"- name: .*|  (?:ports|health|until|attrs): .+|- .*|\+[0-9]+ more")


def item(name: str = "web", **fields) -> dict:
    shown = {"name": name, "ports": [3000], "ttl_expires_at": None, "attrs": {}, "healthcheck": HTTP}
    return {**shown, **fields}


def fenced(block: str) -> list[str]:
    """Return the lines between the fences."""
    assert block.startswith(OPENING)
    assert block.endswith(CLOSING)
    return block[len(OPENING) : -len(CLOSING)].splitlines()


class TestBlock:
    def test_in_full(self):
        attrs = {"url": "http://localhost:3000/", "what": "dev server"}
        block = live_block([item(attrs=attrs, ttl_expires_at=1_795_190_400_000), item("db", ports=[], healthcheck={})])
        assert fenced(block) == [
            "- name: web",
            "  ports: 3000",
            "  health: http://127.0.0.1:3000/",
            "  until: 2026-11-20 16:00 UTC",
            '  attrs: {"url":"http://localhost:3000/","what":"dev server"}',
            "- name: db",
        ]

    def test_of_nothing_is_a_sentence(self):
        assert live_block([]) == EMPTY

    def test_that_is_too_long_is_a_list(self):
        block = live_block([item(f"web-{number}", attrs={"text": "x" * 200}) for number in range(12)])
        assert fenced(block) == [f"- web-{number}, ports 3000" for number in range(12)]

    def test_that_is_longer_still_says_how_many_more(self):
        lines = fenced(live_block([item(f"web-{number:03}") for number in range(200)]))
        shown = len(lines) - 1
        assert lines[:-1] == [f"- web-{number:03}, ports 3000" for number in range(shown)]
        assert lines[-1] == f"+{200 - shown} more"
        assert shown > 50

    def test_never_has_more_bytes_than_it_may(self):
        for length in range(1, 65):
            many = [item("x" * length) for _ in range(500)]
            assert MAX_BYTES - 100 < len(live_block(many).encode()) <= MAX_BYTES
        # Fewer signs than bytes.
        assert fenced(live_block([item(attrs={"a": "ä" * 1200})])) == ["- web, ports 3000"]

    def test_fills_what_it_may(self):
        """Full form up to the last byte, and not one more."""
        room = MAX_BYTES - len(live_block([item(attrs={"a": ""})]).encode())
        assert len(live_block([item(attrs={"a": "x" * room})]).encode()) == MAX_BYTES
        assert fenced(live_block([item(attrs={"a": "x" * (room + 1)})])) == ["- web, ports 3000"]

    @pytest.mark.parametrize(
        "text", ["a\n# Heading", "a\r\n```\n# out", "\u2028# x", "```", "[x](http://evil)", "</x>"]
    )
    def test_what_would_break_out_is_inert(self, text):
        block = live_block([item(text, attrs={"note": text, text: 1}, healthcheck={"type": "http", "url": text})])
        assert block.count("`") == 6
        assert not any(line.startswith("#") for line in block.splitlines())
        assert "](" not in block
        assert "<" not in block

    def test_attrs_keep_their_meaning(self):
        attrs = {"note": "`a`\n<b>\u2028[x](y)\x7f😀\U000e0001", "deep": [1, {"k": [None, True, 1.5]}]}
        [line] = [line for line in fenced(live_block([item(attrs=attrs)])) if line.startswith("  attrs: ")]
        assert json.loads(line.removeprefix("  attrs: ")) == attrs

    @given(ITEMS)
    @example([item("x" * 64, ports=list(range(60_000, 60_020)))] * 60)
    @example([item("\U0001f600" * 64, attrs={"😀" * 400: 1})] * 9)
    @example([item("\ud800", attrs={"\udfff": "\ud800"})])
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_in_it(self, items):
        block = live_block(items)
        assert len(block.encode()) <= MAX_BYTES
        assert not any(line.startswith("#") for line in block.splitlines())
        if not items:
            return
        lines = fenced(block)
        assert block.count("`") == 6
        assert all(LINE.fullmatch(line) for line in lines)
        assert all(sign.isprintable() for line in lines for sign in line)
        more = int(lines[-1][1:-5]) if lines[-1].startswith("+") else 0
        assert sum(line.startswith("- ") for line in lines) + more == len(items)


@pytest.mark.django_db
class TestLiveBlock:
    @pytest.fixture
    def demo(self, imported):
        return imported("demo")

    def test_has_the_healthy_services_of_one_project(self, client_of, demo, imported):
        healthy(demo, "web", attrs={"url": "http://localhost:3000/"})
        healthy(demo, "api")
        spawned(declared(demo, "starting"))
        failed(demo, "failed")
        sick = healthy(demo, "sick")
        lifecycle.sicken(sick, "refused", misses=3, jitter=0.5, by=SWEEP, now=timezone.now())
        launched(demo, Purpose.LOOP, "loop")
        healthy(imported("other"), "theirs")
        response = client_of("viewer").get(f"{URL}/live-block?project=demo")
        assert response["Content-Type"] == "text/markdown; charset=utf-8"
        text = response.content.decode()
        assert [line for line in text.splitlines() if line.startswith("- ")] == ["- name: api", "- name: web"]
        assert text == live_block([queries.item(row) for row in queries.healthy("demo")])

    def test_of_a_project_without_any(self, client_of, demo):
        assert client_of("viewer").get(f"{URL}/live-block?project=demo").content.decode() == EMPTY

    def test_of_which_project(self, client_of, demo, imported):
        healthy(imported("other"), "theirs")
        healthy(demo, "ours")
        viewer, bound = client_of("viewer"), client_of("viewer", project="demo")
        refused(viewer.get(f"{URL}/live-block"), 422, "invalid-request")
        refused(viewer.get(f"{URL}/live-block?project=absent"), 404, "not-found")
        refused(bound.get(f"{URL}/live-block?project=other"), 404, "not-found")
        refused(Client().get(f"{URL}/live-block?project=demo"), 401, "unauthenticated")
        assert "- name: ours\n" in bound.get(f"{URL}/live-block").content.decode()

    def test_takes_few_queries(self, client_of, demo, django_assert_num_queries):
        for name in ("a", "b", "c"):
            healthy(demo, name)
        viewer = client_of("viewer")
        viewer.get("/api/me")
        # The token, whether the project is known, the rows.
        with django_assert_num_queries(3):
            viewer.get(f"{URL}/live-block?project=demo")


@pytest.mark.django_db
class TestHint:
    def get(self, client, **query):
        return client.get(f"{URL}/hint", query)

    def test_tells_where_to_write_and_who_writes(self, client_of, settings):
        response = self.get(client_of("viewer"), agent="t_1a2b3c4d-2", wi="t_1a2b3c4d")
        assert response["Content-Type"] == "text/markdown; charset=utf-8"
        path = settings.ANDON_HOME / "agents" / "t_1a2b3c4d-2" / "managed-spawn.json"
        assert response.content.decode() == specs.hint(path, "t_1a2b3c4d-2", "t_1a2b3c4d")
        assert str(path) in response.content.decode()

    def test_names_the_project_in_its_smoke_test(self, client_of, imported):
        imported("demo")
        text = self.get(client_of("viewer"), agent="a", wi="b", project="demo").content.decode()
        assert "/api/managed-processes/validate?project=demo" in text
        bound = client_of("viewer", project="demo")
        assert self.get(bound, agent="a", wi="b").content.decode() == text
        refused(self.get(bound, agent="a", wi="b", project="other"), 404, "not-found")

    def test_to_what_is_no_agent(self, client_of):
        viewer = client_of("viewer")
        for agent in ("", "../x", "a/b", "-a", "a b", "a\n", "é", "a" * 129, "\x00"):
            refused(self.get(viewer, agent=agent, wi="b"), 400, "invalid-agent-id")
        refused(self.get(viewer), 400, "invalid-agent-id")
        refused(self.get(Client(), agent="a"), 401, "unauthenticated")

    def test_with_a_hostile_work_item(self, client_of):
        text = self.get(client_of("viewer"), agent="a", wi="x\n# Heading\n```").content.decode()
        assert "# Heading" not in text
