"""/search/ and /help/: everything is found by any word of it, a bounded look each, and every sign is explained."""

import re

import pytest
from django.utils import timezone

from config import guide, search
from kanban import states as kanban
from projects import timelines
from projects.events import SWEEP, record, writing
from projects.models import Event, JournalFile
from projects.states import JournalFamily, JournalState, ProjectStatus, Role, RollbackStatus, StopStatus, StoryState
from projects.templatetags.andon import WORDS
from services.models import ManagedProcess
from services.states import HostStatus, Purpose, Status
from tests.contracts.source import ROOT
from tests.kanban import rows

pytestmark = pytest.mark.django_db


@pytest.fixture
def make_process(db):
    def make(name: str, **fields) -> ManagedProcess:
        now = timezone.now()
        fields = {"purpose": Purpose.SERVICE, "status": Status.EXITED, "project": "garden", **fields}
        return ManagedProcess.objects.create(
            name=name, node="test-node", since=now, declared_at=now, cwd="/", **{"cmd": "python3", **fields}
        )

    return make


@pytest.fixture
def make_session(db):
    def make(name: str, *, family=JournalFamily.TURNS, state=JournalState.READ) -> JournalFile:
        now = timezone.now()
        where = {"node": "test-node", "root": "/journals", "relpath": f"_turn_journal/{name}.jsonl"}
        return JournalFile.objects.create(name=name, family=family, state=state, found_at=now, written_at=now, **where)

    return make


def found(text: str) -> dict[str, list[str]]:
    return {kind.name: [hit.title for hit in kind.hits] for kind in search.search(text)}


class TestSearch:
    def test_finds_projects_stories_and_their_events(self, imported):
        imported("garden", states=("passed", "pending"))
        hits = found("garden")
        assert len(hits["projects"]) == 1
        assert len(hits["stories"]) == 2
        assert hits["events"]
        assert len(found("us-002")["stories"]) == 1
        assert found("no-such-thing") == {}
        assert found("   ") == {}

    def test_finds_sessions_by_name_and_leads_to_all_of_them(self, make_session):
        for number in range(search.SHOWN + 2):
            make_session(f"chat-{number:02}")
        make_session("other", state=JournalState.MISSING)
        make_session("old-one", state=JournalState.SUPERSEDED)
        make_session("looping", family=JournalFamily.HISTORY)
        [kind] = search.search("chat")
        assert (kind.name, len(kind.hits), kind.is_cut, kind.more) == (
            "sessions",
            search.SHOWN,
            True,
            "/sessions/?q=chat",
        )
        [hit] = search.search("other")[0].hits
        assert (hit.url, hit.detail[:16]) == ("/sessions/other/", "its file is gone")
        assert search.search("old-one") == search.search("looping") == []

    def test_every_word_has_to_match_somewhere(self, imported):
        imported("garden", states=("passed", "pending"))
        imported("orchard", states=("passed", "pending"))
        assert len(found("garden us-001")["stories"]) == 1
        assert "stories" not in found("garden us-009")

    def test_the_name_itself_comes_first_then_what_begins_with_it(self, make_process):
        for name in ("other-web", "webhook", "web"):
            make_process(name)
        assert found("web")["services"] == ["garden/web", "garden/webhook", "garden/other-web"]

    def test_finds_processes_by_program_owner_and_pid(self, make_process):
        make_process("loop", purpose=Purpose.LOOP, cmd="ralph")
        make_process("api", owner_agent="ada", owner_wi="w-17")
        live = {"pid": 4242, "start_ticks": 1, "boot_id": "b", "status": Status.HEALTHY}
        make_process("web", **live)
        assert found("ralph") == {"processes": ["garden/loop"]}
        assert found("w-17") == {"services": ["garden/api"]}
        assert found("ada") == {"services": ["garden/api"]}
        assert found("4242") == {"services": ["garden/web"]}

    def test_an_event_is_found_by_number_by_whole_subject_and_by_words(self, monkeypatch):
        with writing():
            for number in range(30):
                record("bench.x", f"bench:{number:03}", by=SWEEP, now=timezone.now())
        first = Event.objects.order_by("id")[0]
        assert search.search(f"#{first.pk}")[0].hits[0].url == first.get_absolute_url()
        monkeypatch.setattr(search, "EVENTS_LOOKED_THROUGH", 5)
        assert len(found("bench:000")["events"]) == 1
        assert found("bench:00") == {}
        assert len(found("bench:02")["events"]) == 5

    def test_shows_few_of_many_and_leads_to_the_rest(self, make_process, sign_in):
        for number in range(20):
            make_process(f"web-{number:02}")
        [kind] = search.search("web")
        assert (len(kind.hits), kind.is_cut, kind.more) == (search.SHOWN, True, "/services/?q=web")
        assert 'href="/services/?q=web"' in sign_in().get("/search/?q=web").content.decode()

    @pytest.mark.parametrize("text", ["%", "_", "\\", "'", '"', "\x01", "a" * 999, "#" * 9, "9" * 30, "é ß 漢"])
    def test_nonsense_finds_nothing_and_breaks_nothing(self, text, make_process, sign_in):
        make_process("web")
        assert "services" not in found(text)
        assert sign_in("viewer").get("/search/", {"q": text}).status_code == 200

    def test_what_agents_wrote_is_escaped(self, make_process, sign_in):
        make_process("web", last_error="<img src=x onerror=alert(1)>\u202e")
        text = sign_in().get("/search/?q=web").content.decode()
        assert "&lt;img src=x" in text
        assert "<img src=x" not in text
        assert "\u202e" not in text

    def test_costs_a_bounded_number_of_queries(self, imported, make_process, sign_in, django_assert_max_num_queries):
        for name in ("web-garden", "web-orchard", "web-shop"):
            imported(name, states=("passed", "pending"))
            make_process(f"{name}-service")
            make_process(f"{name}-loop", purpose=Purpose.LOOP)
            rows.started(title=name)
        client = sign_in("admin")
        for text in ("web", "12", f"task:{rows.task('web').pk}"):
            with django_assert_max_num_queries(12):
                client.get("/search/", {"q": text})

    def test_says_what_to_do_when_nothing_matches(self, sign_in):
        client = sign_in("viewer")
        assert "Nothing matches “zebra”" in client.get("/search/?q=zebra").content.decode()
        assert "What are you looking for?" in client.get("/search/").content.decode()

    def test_the_list_alone_is_a_fragment(self, make_process, sign_in):
        make_process("web")
        text = sign_in().get("/search/?q=web", headers={"HX-Request": "true", "HX-Target": "results"}).content.decode()
        assert text.lstrip().startswith('<section id="results"')


class TestHelp:
    def test_explains_every_state_by_shape_word_and_colour(self, sign_in):
        shapes = set(re.findall(r'<symbol id="([a-z_]+)"', (ROOT / "config/static/img/status.svg").read_text()))
        colours = (ROOT / "config/static/css/tokens.css").read_text()
        explained = {sign.status for _label, signs in guide.LEGEND for sign in signs}
        assert explained <= shapes
        assert explained <= set(WORDS)
        neutral = {"asked", "undone"}
        assert {status for status in explained - neutral if f'[data-status="{status}"]' not in colours} == set()
        for machine in (ProjectStatus, StoryState, RollbackStatus, StopStatus, HostStatus, Status, kanban.Status):
            assert {str(each) for each in machine} <= explained, machine

    def test_names_shortcuts_pages_and_where_to_ask_further(self, sign_in):
        text = sign_in("viewer").get("/help/").content.decode()
        for part in ("Keyboard shortcuts", "manage.py doctor", "/api/docs", 'href="/events/"', "They do nothing while"):
            assert part in text

    def test_says_when_they_are_switched_off(self, sign_in):
        client = sign_in("viewer")
        client.post("/settings/", {"theme": "dark", "density": "compact", "zone": "UTC"})
        assert "switched off for you" in client.get("/help/").content.decode()

    def test_every_page_that_it_names_is_there(self, sign_in):
        for role in Role:
            client = sign_in(role)
            assert [url for url, _name, _purpose in guide.pages(role) if client.get(url).status_code != 200] == []

    def test_names_sessions_and_for_who_may_notices(self, sign_in):
        text = sign_in("operator").get("/help/").content.decode()
        for url in ("/sessions/", "/audit/", "/settings/notices/"):
            assert f'<a class="title-link" href="{url}">' in text
        assert "/settings/notices/" not in sign_in("viewer").get("/help/").content.decode()

    def test_explains_every_state_of_a_turn_by_its_own_word(self, sign_in):
        text = sign_in("viewer").get("/help/").content.decode()
        assert set(guide.TURNS) == set(timelines.STATES)
        for _mark, word in timelines.STATES.values():
            assert f"</svg>{word}</span>" in text
