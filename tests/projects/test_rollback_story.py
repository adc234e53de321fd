"""Which story a rollback reopens: what the caller, the commit, our own record and the flips say, in that order."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.ralph import MAX_BYTES
from projects.rollback.story import CANDIDATES, Choice, choose

pytestmark = pytest.mark.pure

SUBJECT = "chore: tidy up"


def prd(*stories, branch="ralph/demo", **fields):
    """A prd.json: `"US-1"` is an open story, `"US-1+"` one that has passed."""
    written = [{"id": story.rstrip("+"), "title": f"Do {story}", "passes": story.endswith("+")} for story in stories]
    return json.dumps({"branchName": branch, "userStories": written, **fields}).encode()


def chosen(subject=SUBJECT, *, named="", own="", head=None, disk=None, parent=None):
    return choose(subject=subject, named=named, own=own, head_document=head, disk_document=disk, parent_document=parent)


def story_of(subject, *ids):
    """What a subject says where nothing else tells anything."""
    return chosen(subject, disk=prd(*ids)).story


class TestSubject:
    @pytest.mark.parametrize(
        "subject",
        [
            "feat: [US-001] - Add the login",
            "feat: [US-001] Add the login",
            "feat:[US-001] Add the login",
            "feat: [ US-001 ] Add the login",
            "feat: (US-001) Add the login",
            "feat: US-001 Add the login",
            "feat: US-001 - Add the login",
            "feat: US-001: Add the login",
            "feat: US-001",
            "feat!: US-001 Add the login",
            "fix(api): [US-001] Add the login",
            "fix(api)!: US-001 Add the login",
            "refactor(api/v2): US-001, the login",
            "feat(US-001): add the login",
            "Feat: us-001 add the login",
            "feat: [us-001] add the login",
            "WIP: [US-001]",
            "[US-001] Add the login",
            "[US-001]: Add the login",
            "[wip] [US-001] Add the login",
            "US-001: Add the login",
            "US-001 - Add the login",
            "US-001 – Add the login",
            "US-001",
            "   feat:   US-001   Add\tthe login",
            "feat: US-001. Add the login",
            "feat: US-001 and the login",
            "feat: US-001's login",
        ],
    )
    def test_names_the_story(self, subject):
        assert story_of(subject, "US-002", "US-001", "US-0011", "US") == "US-001"

    @pytest.mark.parametrize(
        "subject",
        [
            "feat: add what US-001 needs",
            "feat: add the login [US-001]",
            "fix the login of US-001",
            "US-001 was a mistake, drop it",
            'Revert "feat: [US-001] Add the login"',
            "revert: [US-001] Add the login",
            "Merge branch 'US-001'",
            "feat: US-0010 Add the login",
            "feat: US-001-b Add the login",
            "feat: US-001.1 Add the login",
            "feat: US-001..US-005 all of them",
            "feat: XUS-001 Add the login",
            "feat(api): add the login",
            "feat:",
            "[]",
            "",
            "feat: [US-001",
        ],
    )
    def test_does_not_name_it(self, subject):
        assert story_of(subject, "US-001", "US-002") == ""

    @pytest.mark.parametrize(
        ("subject", "story"),
        [
            ("feat: US-1-b do", "US-1-b"),
            ("feat: US-1 do", "US-1"),
            ("feat: Story 1 of it", "Story 1"),
            ("feat: [Story 1] of it", "Story 1"),
            ("feat: größe-1 do", "größe-1"),
            ("feat: GRÖßE-1 do", "größe-1"),
            ("feat: [a, b] do", "a, b"),
            ("feat: x/y.z_1: do", "x/y.z_1"),
            ("feat: $(id)-1 do", "$(id)-1"),
            ("feat: .*a-1 do", ".*a-1"),
        ],
    )
    def test_ids_are_whatever_the_document_calls_them(self, subject, story):
        assert story_of(subject, "US-1", "US-1-b", "Story 1", "größe-1", "a, b", "x/y.z_1", "$(id)-1", ".*a-1") == story

    @pytest.mark.parametrize(
        ("subject", "story"),
        [
            ("feat: [12] do", "12"),
            ("feat: [1] do", "1"),
            ("[1.2] do", "1.2"),
            ("feat: 12 buttons", ""),
            ("feat: 12: buttons", ""),
            ("feat(12): buttons", ""),
            ("1.2: released", ""),
            ("feat: 1.2 released", ""),
        ],
    )
    def test_a_bare_number_needs_brackets(self, subject, story):
        assert story_of(subject, "1", "12", "1.2") == story

    @pytest.mark.parametrize(
        ("subject", "story"),
        [
            ("feat: [login] do", "login"),
            ("feat: login: do", "login"),
            ("login: do", "login"),
            ("feat: login works again", ""),
            ("feat(login): do", ""),
        ],
    )
    def test_a_plain_word_needs_brackets_or_a_colon(self, subject, story):
        assert story_of(subject, "login", "US-1") == story

    def test_the_longest_id_is_preferred(self):
        assert story_of("feat: Story-1 part 2 of it", "Story-1", "Story-1 part 2", "Story-1 part") == "Story-1 part 2"

    def test_the_same_case_is_preferred(self):
        assert story_of("feat: us-a do", "US-A", "us-a") == "us-a"
        assert story_of("feat: US-A do", "US-A", "us-a") == "US-A"

    @pytest.mark.parametrize(
        "subject",
        [
            "feat: [US-2] [US-1] both",
            "feat: [US-2][US-1] both",
            "feat: [US-2, US-1] both",
            "feat: US-2, US-1: both",
            "feat: US-2 and US-1 both",
            "US-2/US-1: both",
        ],
    )
    def test_two_stories_are_for_a_person_to_choose_from(self, subject):
        head, disk = prd("US-1", "US-2", "US-3"), prd("US-1", "US-2", "US-3+")
        assert chosen(subject, head=head, disk=disk) == Choice("", "", ("US-2", "US-1", "US-3"))

    def test_the_same_story_twice_is_one(self):
        assert story_of("feat: [US-1] [us-1] do", "US-1", "US-2") == "US-1"

    def test_is_stronger_than_the_record_and_the_flips(self):
        disk, head = prd("US-1+", "US-2", "US-3"), prd("US-1", "US-2", "US-3")
        assert chosen("feat: US-2 do", own="US-3", head=head, disk=disk) == Choice("US-2", "Do US-2")

    def test_that_names_a_story_which_has_gone_from_the_disk_is_not_overruled_by_a_flip(self):
        head, disk = prd("US-1", "US-2"), prd("US-1+")
        assert chosen("feat: [US-2] do", head=head, disk=disk) == Choice(candidates=("US-1",))

    def test_that_names_no_story_of_any_document_says_nothing(self):
        head, disk = prd("US-1", "US-2"), prd("US-1+", "US-2")
        assert chosen("feat: [WIP] US-9 do", head=head, disk=disk).story == "US-1"


class TestNamed:
    def test_holds_against_everything(self):
        head, disk = prd("US-1", "US-2", "US-3"), prd("US-1+", "US-2", "US-3")
        assert chosen("feat: US-2 do", named="US-3", own="US-2", head=head, disk=disk) == Choice("US-3", "Do US-3")

    def test_that_is_not_on_disk_is_unknown(self):
        head, disk = prd("US-1", "US-2", "US-9"), prd("US-1+", "US-2")
        assert chosen("feat: US-2 do", named="US-9", head=head, disk=disk) == Choice(candidates=("US-2", "US-1"))

    @pytest.mark.parametrize("named", [" ", "us-1", "US-1 ", "\ud800", "x" * 10_000])
    def test_is_taken_to_the_letter(self, named):
        assert chosen(named=named, disk=prd("US-1+")) == Choice(candidates=("US-1",))

    def test_holds_where_nothing_can_be_compared(self):
        assert chosen(named="US-1", head=b"{", disk=prd("US-1"), parent=b"\xff") == Choice("US-1", "Do US-1")


class TestOwnRecord:
    def test_is_stronger_than_the_flips(self):
        head, disk = prd("US-1", "US-2"), prd("US-1+", "US-2")
        assert chosen(own="US-2", head=head, disk=disk) == Choice("US-2", "Do US-2")

    def test_of_a_story_that_is_not_on_disk_leaves_it_unknown(self):
        head, disk = prd("US-1"), prd("US-1+")
        assert chosen(own="US-2", head=head, disk=disk) == Choice(candidates=("US-1",))


class TestFlips:
    def test_from_the_commit_to_the_disk(self):
        """The ordinary case: the code is committed, then the story flipped; the commit holds the flip before."""
        parent, head, disk = prd("US-1", "US-2"), prd("US-1+", "US-2"), prd("US-1+", "US-2+")
        assert chosen(head=head, disk=disk, parent=parent) == Choice("US-2", "Do US-2+")

    def test_inside_the_commit_when_the_disk_agrees_with_it(self):
        parent, head = prd("US-1+", "US-2", "US-3"), prd("US-1+", "US-2+", "US-3")
        assert chosen(head=head, disk=head, parent=parent) == Choice("US-2", "Do US-2+")

    def test_what_else_differs_is_no_flip(self):
        parent, head = prd("US-1", "US-2"), prd("US-1+", "US-2")
        disk = prd("US-1+", "US-2", "US-3", project="Renamed")
        assert chosen(head=head, disk=disk, parent=parent).story == "US-1"

    def test_two_since_the_commit_are_candidates(self):
        parent, head = prd("US-1", "US-2", "US-3", "US-4+"), prd("US-1+", "US-2", "US-3", "US-4+")
        disk = prd("US-1+", "US-2+", "US-3+", "US-4+")
        assert chosen(head=head, disk=disk, parent=parent) == Choice(candidates=("US-2", "US-3", "US-1", "US-4"))

    def test_two_inside_the_commit_are_candidates(self):
        parent, head = prd("US-0+", "US-1", "US-2"), prd("US-0+", "US-1+", "US-2+")
        assert chosen(head=head, disk=head, parent=parent) == Choice(candidates=("US-1", "US-2", "US-0"))

    def test_a_story_reopened_since_means_that_they_differ(self):
        parent, head = prd("US-0+", "US-1"), prd("US-0+", "US-1+")
        assert chosen(head=head, disk=prd("US-0", "US-1+"), parent=parent) == Choice(candidates=("US-1",))

    def test_a_story_that_came_as_passed_is_a_candidate_only(self):
        assert chosen(head=prd("US-1"), disk=prd("US-1", "US-2+")) == Choice(candidates=("US-2",))
        both = prd("US-1", "US-2+")
        assert chosen(head=both, disk=both, parent=prd("US-1")) == Choice(candidates=("US-2",))

    def test_a_flip_of_a_story_that_has_gone_from_the_disk_is_no_candidate(self):
        parent, head = prd("US-1", "US-2+"), prd("US-1+", "US-2+")
        assert chosen(head=head, disk=prd("US-2+"), parent=parent) == Choice(candidates=("US-2",))

    def test_no_flip_at_all(self):
        same = prd("US-1+", "US-2", "US-3+")
        assert chosen(head=same, disk=same, parent=same) == Choice(candidates=("US-1", "US-3"))

    def test_every_spelling_of_passed_counts(self):
        head = json.dumps([{"id": "A", "title": "Do A", "status": "in_progress"}]).encode()
        disk = json.dumps([{"id": "A", "title": "Do A", "status": "done"}]).encode()
        assert chosen(head=head, disk=disk) == Choice("A", "Do A")

    @pytest.mark.parametrize("parent", [None, b"", b"{", b"\xff", b"1", b" " * (MAX_BYTES + 1), b"[" * 60])
    def test_a_parent_that_cannot_be_read_holds_no_flip(self, parent):
        head = prd("US-1+")
        assert chosen(head=head, disk=head, parent=parent) == Choice(candidates=("US-1",))

    @pytest.mark.parametrize("head", [None, b"", b"{", b"\xff", b"1", b" " * (MAX_BYTES + 1), b"[" * 60])
    def test_a_commit_without_a_readable_prd_leaves_it_unknown(self, head):
        assert chosen(head=head, disk=prd("US-1+"), parent=prd("US-1")) == Choice(candidates=("US-1",))


class TestDisk:
    @pytest.mark.parametrize("disk", [None, b"", b"{", b"\xff", b"null", b" " * (MAX_BYTES + 1), b"[" * 60])
    def test_nothing_can_be_chosen_without_it(self, disk):
        found = chosen("feat: US-1 do", named="US-1", own="US-1", head=prd("US-1+"), disk=disk, parent=prd("US-1"))
        assert found == Choice()

    def test_of_another_branch_gives_the_ids_another_meaning(self):
        old, new = prd("US-1", branch="ralph/old"), prd("US-1+", branch="ralph/new")
        assert chosen("feat: [US-1] do", own="US-1", head=old, disk=new) == Choice(candidates=("US-1",))
        assert chosen("feat: [US-1] do", named="US-1", head=old, disk=new).story == "US-1"

    def test_a_branch_that_only_one_of_them_says_is_no_other(self):
        assert chosen(head=prd("US-1", branch=""), disk=prd("US-1+")).story == "US-1"

    def test_the_commit_that_began_the_branch_holds_no_flip(self):
        parent, head = prd("US-1", branch="ralph/old"), prd("US-1+")
        assert chosen(head=head, disk=head, parent=parent) == Choice(candidates=("US-1",))

    def test_candidates_are_capped_and_each_named_once(self):
        ids = [f"US-{number}" for number in range(5000)]
        found = chosen(head=prd(*ids), disk=prd(*(f"{each}+" for each in ids)), parent=prd(*ids))
        assert found == Choice(candidates=tuple(ids[:CANDIDATES]))

    def test_synthesised_and_suffixed_ids(self):
        twins = [{"id": "A", "title": "1"}, {"id": "A", "title": "2"}]
        head = json.dumps({"stories": twins}).encode()
        disk = json.dumps({"stories": [twins[0], {**twins[1], "passes": True}]}).encode()
        assert chosen(head=head, disk=disk) == Choice("A-2", "2")


ids = st.sampled_from(["US-1", "US-2", "us-1", "12", "login", "[", "a b", "é", "\ud800"])
texts = st.text(max_size=30) | st.lists(
    st.sampled_from([*"[](),:!&", " ", "and", "feat", "US-1", "US-2", "12", "revert"]), max_size=12
).map("".join)
documents = (
    st.none()
    | st.binary(max_size=40)
    | st.lists(st.tuples(ids, st.booleans()), max_size=6).map(
        lambda stories: json.dumps([{"id": story, "passes": passes} for story, passes in stories]).encode()
    )
)


@settings(deadline=None)
@given(subject=texts, named=texts, own=texts | ids, head=documents, disk=documents, parent=documents)
def test_nothing_raises_and_only_what_is_on_disk_is_chosen(subject, named, own, head, disk, parent):
    found = chosen(subject, named=named, own=own, head=head, disk=disk, parent=parent)
    on_disk = {story: chosen(named=story, disk=disk).story == story for story in (found.story, *found.candidates)}
    assert all(on_disk.values())
    assert not (found.story and found.candidates)
    assert len(set(found.candidates)) == len(found.candidates) <= CANDIDATES


def test_a_hostile_subject_ends():
    """5,000 ids and a subject that names as many as it can."""
    ids_on_disk = [f"a{number}" for number in range(5000)]
    found = chosen("[" + "a1,a2," * 100_000 + "]", disk=prd(*ids_on_disk))
    assert found.story == ""
    found = chosen("feat: " + "a1,a2," * 100_000, disk=prd(*ids_on_disk))
    assert found.candidates[:2] == ("a1", "a2")
