"""usage.jsonl on its way in: each line counts once, whatever becomes of the file."""

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from projects import importer, jobs
from projects.importer import costs
from projects.models import Event, Project, UsageEntry
from projects.usage import parse_record
from tests.projects.files import write_prd, write_project

pytestmark = pytest.mark.django_db
MIB = 1024 * 1024


class Ledger:
    """A project's usage.jsonl, and a look at it; `look` returns the kinds of what was told."""

    def __init__(self, root: Path, now: datetime, submitted: list[str]) -> None:
        self.root, self.now, self.submitted = root, now, submitted
        self.path = root / "scripts/ralph/usage.jsonl"

    def append(self, *records: object, end: str = "\n") -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(as_line(record) + end.encode() for record in records))

    def write(self, *records: object) -> None:
        self.path.write_bytes(b"".join(as_line(record) + b"\n" for record in records))

    def look(self) -> list[Event]:
        seen = Event.objects.order_by("-id").values_list("id", flat=True).first() or 0
        self.now += timedelta(seconds=10)
        self.submitted.clear()
        assert importer.rescan(now=self.now).failed == 0
        return list(Event.objects.filter(id__gt=seen).order_by("id"))

    def look_to_the_end(self) -> int:
        """Look until nothing more waits; returns how many looks that took."""
        self.look()
        looks = 1
        while self.submitted:
            assert self.submitted == [f"import {self.root}"]
            self.look()
            looks += 1
        return looks

    @property
    def project(self) -> Project:
        return Project.objects.get(path=str(self.root))

    @property
    def state(self) -> dict:
        return self.project.fingerprints["usage"]


def as_line(record: object) -> bytes:
    return record if isinstance(record, bytes) else json.dumps(record).encode()


def spent() -> list[Decimal | None]:
    return list(UsageEntry.objects.order_by("id").values_list("cost", flat=True))


@pytest.fixture
def ledger(workspace, now, monkeypatch) -> Ledger:
    submitted: list[str] = []
    monkeypatch.setattr(jobs, "submit", lambda key, function, *args: submitted.append(key))
    return Ledger(write_project(workspace / "demo", ("passed", "pending")), now, submitted)


class TestReading:
    def test_a_record_becomes_an_entry_with_all_that_it_says(self, ledger):
        ledger.append(
            {
                "ts": "2026-11-20T03:04:05Z",
                "project": "another name",
                "storyId": "US-001",
                "iter": 3,
                "total_cost_usd": 0.4135,
                "usage": {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 4},
                "cacheCreationInputTokens": 3,
                "duration_ms": 1500,
                "duration_api_ms": 500,
                "num_turns": 7,
                "session_id": "s1",
                "model": "large",
                "run": "r1",
                "exit_code": 1,
            }
        )
        ledger.look()
        entry = UsageEntry.objects.values().get()
        assert entry | {"id": 0, "project_id": 0} == {
            "id": 0,
            "project_id": 0,
            "key": "session:s1/3",
            "at": datetime(2026, 11, 20, 3, 4, 5, tzinfo=UTC),
            "story_key": "US-001",
            "iteration": 3,
            "cost": Decimal("0.413500000"),
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_creation_tokens": 3,
            "cache_read_tokens": 4,
            "duration_s": 1.5,
            "duration_api_s": 0.5,
            "num_turns": 7,
            "model": "large",
            "session": "s1",
            "run": "r1",
            "failed": True,
            "rate_limited": False,
        }
        assert entry["project_id"] == ledger.project.pk

    def test_a_time_that_is_not_said_is_the_files(self, ledger):
        ledger.append({"cost": 1})
        at = datetime(2026, 11, 19, 8, 0, tzinfo=UTC)
        os.utime(ledger.path, (at.timestamp(), at.timestamp()))
        ledger.look()
        assert UsageEntry.objects.get().at == at

    def test_a_quota_is_no_failure(self, ledger):
        ledger.append({"is_error": True, "result": "usage limit reached", "cost": 0})
        ledger.look()
        entry = UsageEntry.objects.get()
        assert (entry.rate_limited, entry.failed) == (True, False)

    def test_only_what_was_appended_is_read(self, ledger):
        ledger.append({"cost": 1, "ts": 1763600000})
        ledger.look()
        offset = ledger.state["offset"]
        assert offset == ledger.path.stat().st_size
        ledger.append({"cost": 2, "ts": 1763600001})
        told = ledger.look()
        assert [(event.kind, event.payload["changed"]) for event in told] == [("project.changed", ["usage"])]
        assert spent() == [1, 2]
        assert ledger.look() == []

    def test_a_line_counts_once_it_ended(self, ledger):
        ledger.append({"cost": 1})
        ledger.append({"cost": 2}, end="")
        ledger.look()
        assert spent() == [1]
        ledger.append(b"")
        ledger.look()
        assert spent() == [1, 2]

    def test_a_mark_at_the_beginning_carriage_returns_and_empty_lines(self, ledger):
        ledger.append(b"\xef\xbb\xbf" + as_line({"cost": 1}) + b"\r", b"", b"  \r", as_line({"cost": 2}) + b"\r")
        ledger.look()
        assert (spent(), ledger.state["rejected"]) == ([1, 2], 0)

    def test_many_events_are_one(self, ledger):
        ledger.look()
        ledger.append(*({"cost": 1, "ts": 1763600000 + n} for n in range(50)))
        assert [event.kind for event in ledger.look()] == ["project.changed"]

    def test_a_plain_directory_has_none(self, ledger, workspace):
        (workspace / "plain/.git").mkdir(parents=True)
        (workspace / "plain/usage.jsonl").write_text('{"cost": 1}\n')
        ledger.look()
        assert spent() == []


class TestOnce:
    def test_of_a_session_the_first_line_counts(self, ledger):
        ledger.append({"session_id": "s", "iteration": 1, "cost": 1}, {"session_id": "s", "iteration": 1, "cost": 9})
        ledger.look()
        ledger.append({"session_id": "s", "iteration": 1, "cost": 8}, {"session_id": "s", "iteration": 2, "cost": 2})
        ledger.look()
        assert spent() == [1, 2]

    def test_a_session_of_another_project_is_another(self, ledger, workspace):
        other = write_project(workspace / "other")
        (other / "scripts/ralph/usage.jsonl").write_text('{"session_id": "s", "cost": 1}\n')
        ledger.append({"session_id": "s", "cost": 2})
        ledger.look()
        assert sorted(spent()) == [1, 2]

    def test_equal_lines_count_each(self, ledger):
        ledger.append({"cost": 1}, {"cost": 1}, {"cost": 2})
        ledger.look()
        ledger.append({"cost": 1}, {"cost": 2}, {"cost": 1})
        ledger.look()
        assert sorted(spent()) == [1, 1, 1, 1, 2, 2]

    def test_equal_lines_over_batches_and_again(self, ledger, monkeypatch):
        monkeypatch.setattr(costs, "BATCH_LINES", 3)
        lines = [{"cost": 1}, {"cost": 2}] * 10
        ledger.append(*lines)
        assert ledger.look_to_the_end() == 7
        assert (UsageEntry.objects.count(), sum(spent())) == (20, 30)
        Project.objects.update(fingerprints={})
        ledger.look_to_the_end()
        assert UsageEntry.objects.count() == 20
        ledger.append({"cost": 1})
        ledger.look_to_the_end()
        assert (UsageEntry.objects.count(), sum(spent())) == (21, 31)

    def test_read_again_all_of_it_counts_once(self, ledger, now):
        ledger.append({"cost": 1}, {"cost": 1}, {"session_id": "s", "cost": 2}, b"nonsense")
        ledger.look()
        importer.forget(Project.objects.all(), by=importer.SWEEP, now=now)
        # The file of progress was looked at anew too; of money there is no news.
        assert [event.payload["changed"] for event in ledger.look()] == [["progress"]]
        assert (spent(), ledger.state["rejected"]) == ([1, 1, 2], 1)

    def test_truncated_and_grown_anew(self, ledger):
        ledger.append(*({"cost": 1, "ts": 1763600000 + n} for n in range(20)))
        ledger.look()
        ledger.write({"cost": 5, "ts": 1763700000})
        ledger.look()
        assert (len(spent()), sum(spent())) == (21, 25)

    def test_rewritten_and_longer_than_before(self, ledger):
        kept = [{"cost": 1, "ts": 1763600000 + n} for n in range(5)]
        ledger.append(*kept)
        ledger.look()
        ledger.write({"cost": 9, "ts": 1763500000}, *kept, {"cost": 7, "ts": 1763600009})
        ledger.look()
        assert sorted(spent()) == [1] * 5 + [7, 9]

    @pytest.mark.parametrize("place", [0, 199])
    def test_edited_without_another_length(self, ledger, place):
        lines = [{"cost": 1, "ts": 1763600000 + n} for n in range(200)]
        ledger.append(*lines)
        ledger.look()
        lines[place]["cost"] = 3
        ledger.write(*lines, {"cost": 5, "ts": 1763700000})
        ledger.look()
        # What was said first stays: money that was counted is not taken back.
        assert (len(spent()), sum(spent())) == (202, 200 + 3 + 5)

    def test_rotated(self, ledger):
        ledger.append({"cost": 1, "ts": 1763600000})
        ledger.look()
        ledger.path.rename(ledger.path.with_name("usage.jsonl.1"))
        ledger.look()
        assert spent() == [1]
        ledger.append({"cost": 2, "ts": 1763600001})
        ledger.look()
        assert spent() == [1, 2]

    def test_the_prd_moved_away_and_back(self, ledger):
        ledger.append({"cost": 1})
        ledger.look()
        prd = ledger.root / "scripts/ralph/prd.json"
        prd.rename(prd.with_name("gone"))
        (ledger.root / ".git").mkdir()
        ledger.look()
        prd.with_name("gone").rename(prd)
        ledger.look()
        assert spent() == [1]


class TestRejected:
    @pytest.mark.parametrize(
        "line",
        [
            b"nonsense",
            b"[]",
            b"3",
            b'{"cost": -1}',
            b'{"cost": NaN}',
            b'{"cost": true}',
            b'{"cost": 1e999}',
            b'{"cost": ' + b"9" * 5000 + b"}",
            b'{"cost": 100001}',
            b'{"input_tokens": 1e15}',
            b'{"num_turns": 99999999999}',
            b'{"ts": "yesterday"}',
            b'{"session_id": "' + b"x" * 600 + b'"}',
            b"\xff\xfe",
            b"[" * 50_000,
            b'{"a":' * 50_000,
        ],
    )
    def test_a_line_that_makes_no_sense_is_counted_and_told(self, ledger, line):
        ledger.append({"cost": 1, "ts": 1763600000}, line, {"cost": 2, "ts": 1763600001})
        ledger.look()
        assert (spent(), ledger.state["rejected"]) == ([1, 2], 1)
        [warning] = ledger.project.warnings
        assert warning.startswith("usage.jsonl: 1 line is not counted; the last of them is line 2: ")

    def test_the_warning_stays_while_stories_change_and_goes_with_its_reason(self, ledger):
        ledger.append(b"nonsense")
        ledger.look()
        write_prd(ledger.root, "passed", "passed")
        assert [event.kind for event in ledger.look()] == ["story.passed"]
        assert len(ledger.project.warnings) == 1
        ledger.append(b"more", b"nonsense")
        assert [event.kind for event in ledger.look()] == ["project.changed"]
        assert "3 lines are not counted" in ledger.project.warnings[0]
        ledger.write({"cost": 1})
        ledger.look()
        assert ledger.project.warnings == []
        ledger.append(b"nonsense")
        ledger.look()
        assert len(ledger.project.warnings) == 1
        ledger.path.unlink()
        ledger.look()
        assert (ledger.project.warnings, spent()) == ([], [1])

    def test_a_line_that_the_parser_breaks_at_stops_nothing(self, ledger, monkeypatch):
        def parse(document):
            if document.get("poison"):
                raise OverflowError("int too large to convert to float")
            return parse_record(document)

        monkeypatch.setattr(costs, "parse_record", parse)
        ledger.append({"cost": 1}, {"poison": True}, {"cost": 2})
        ledger.look()
        assert (spent(), ledger.state["rejected"]) == ([1, 2], 1)

    def test_a_line_over_a_mebibyte_is_passed_over(self, ledger):
        ledger.append({"cost": 1}, b'{"story": "' + b"x" * MIB + b'"}', {"cost": 2})
        ledger.look_to_the_end()
        assert (spent(), ledger.state["rejected"]) == ([1, 2], 1)
        assert "line 2: longer than 1 MiB" in ledger.project.warnings[0]

    def test_a_line_of_just_a_mebibyte_counts(self, ledger):
        line = b'{"cost": 3, "story": "' + b"x" * (MIB - 25) + b'"}'
        assert len(line) == MIB - 1
        ledger.append(line)
        ledger.look_to_the_end()
        entry = UsageEntry.objects.get()
        assert (entry.cost, entry.story_key) == (3, "x" * 200)

    def test_an_endless_line_is_passed_over_bit_by_bit(self, ledger, monkeypatch):
        monkeypatch.setattr(costs, "SKIPPED_BYTES", 2 * MIB)
        with ledger.path.open("wb") as file:
            file.truncate(8 * MIB)
        looks = ledger.look_to_the_end()
        # The rest waits for the next look, not for this one to be repeated at once.
        assert (looks, ledger.state["offset"], ledger.state["skipping"]) == (1, 2 * MIB, True)
        for _ in range(5):
            ledger.look()
        assert (ledger.state["offset"], ledger.state["rejected"]) == (8 * MIB, 1)
        ledger.append(b"", {"cost": 1})
        ledger.look_to_the_end()
        assert (spent(), ledger.state["rejected"], ledger.state["skipping"]) == ([1], 1, False)

    def test_what_is_not_a_plain_file_inside_is_not_read(self, ledger, workspace):
        secret = workspace.parent / "secret"
        secret.write_text('{"cost": 1}\n')
        ledger.path.symlink_to(secret)
        ledger.look()
        assert (spent(), ledger.project.warnings) == (
            [],
            ["usage.jsonl is not counted: scripts/ralph/usage.jsonl cannot be opened: it is a symbolic link."],
        )
        ledger.path.unlink()
        os.mkfifo(ledger.path)
        ledger.look()
        assert "not a regular file" in ledger.project.warnings[0]
        ledger.path.unlink()
        ledger.append({"cost": 1})
        ledger.look()
        assert (spent(), ledger.project.warnings) == ([1], [])


class TestHostile:
    def test_texts_are_cut_and_cleaned(self, ledger):
        nasty = "<script>\x00\x1b[31m\ud800\n" + "x" * 300_000
        ledger.append({"story": nasty, "model": nasty, "run": nasty, "session_id": "a\x00\ud800b", "cost": 1})
        ledger.look()
        entry = UsageEntry.objects.get()
        for text, limit in ((entry.story_key, 200), (entry.model, 200), (entry.run, 64)):
            assert text.startswith("<script>[31m x")
            assert len(text) == limit
        assert (entry.session, entry.cost) == ("ab", 1)
        assert entry.key.startswith("session:#")

    def test_sessions_that_look_alike_once_cleaned_are_two(self, ledger):
        ledger.append({"session_id": "a\x00b", "cost": 1}, {"session_id": "ab", "cost": 2})
        ledger.append({"session_id": "y" * 500 + "1", "cost": 3}, {"session_id": "y" * 500 + "2", "cost": 4})
        ledger.look()
        assert spent() == [1, 2, 3, 4]
        assert max(len(key) for key in UsageEntry.objects.values_list("key", flat=True)) <= 100

    def test_numbers_are_stored_to_the_ninth_place(self, ledger):
        ledger.append({"cost": "0.1234567894"}, {"cost": 1e-12}, {"cost": 100_000})
        ledger.look()
        assert spent() == [Decimal("0.123456789"), 0, 100_000]

    def test_a_long_file_comes_in_by_batches(self, ledger, workspace):
        ledger.append(*({"cost": 1, "ts": 1763600000 + n} for n in range(2500)))
        other = write_project(workspace / "other")
        ledger.look()
        assert (UsageEntry.objects.count(), ledger.submitted) == (1000, [f"import {ledger.root}"])
        assert Project.objects.filter(path=str(other)).exists()
        ledger.look()
        assert (UsageEntry.objects.count(), ledger.submitted) == (2000, [f"import {ledger.root}"])
        ledger.look()
        assert (UsageEntry.objects.count(), ledger.submitted) == (2500, [])

    def test_a_batch_is_a_mebibyte_at_most(self, ledger):
        ledger.append(*({"cost": 1, "ts": 1763600000 + n, "note": "x" * 100_000} for n in range(25)))
        ledger.look()
        assert UsageEntry.objects.count() == 10
        ledger.look_to_the_end()
        assert UsageEntry.objects.count() == 25
