"""How a profile's template becomes a command line, and what is wrong with one."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kanban import profiles
from kanban.models import Profile
from kanban.profiles import PLACEHOLDERS, SHIPPED, fill, is_installed, problem

TEXT = some.text(max_size=12)
WORDS = some.lists(some.one_of(TEXT, some.sampled_from([f"{{{name}}}" for name in PLACEHOLDERS])), max_size=6)


@pytest.mark.pure
class TestFill:
    def test_whole_arguments_and_nothing_else(self) -> None:
        values = {"task_id": "t_1", "title": "{workspace} $HOME; rm", "workspace": "/w", "context_file": "/c"}
        argv = ["a", "{task_id}", "--x={task_id}", "{title}", "{ title }", "{}", "{unknown}", "{workspace", ""]
        assert fill(argv, values) == [
            "a", "t_1", "--x={task_id}", "{workspace} $HOME; rm", "{ title }", "{}", "{unknown}", "{workspace", ""
        ]  # fmt: skip

    def test_our_own(self) -> None:
        assert fill(["{python}", "{demo}"], {}) == [sys.executable, str(profiles.DEMO)]
        assert profiles.CLI.name == "andon_cli.py"

    @given(argv=WORDS, values=some.dictionaries(some.sampled_from(PLACEHOLDERS[:4]), TEXT))
    def test_there_are_never_more_or_fewer(self, argv: list[str], values: dict[str, str]) -> None:
        filled = fill(argv, values)
        assert len(filled) == len(argv)
        for word, made in zip(argv, filled, strict=True):
            assert made == word or word[1:-1] in PLACEHOLDERS


@pytest.mark.pure
class TestProblem:
    @pytest.mark.parametrize("argv", [["a"], ["a", ""], ["{python}", "{demo}", "{title}"], ["a", "x{y}", "{"]])
    def test_none(self, argv: list[str]) -> None:
        assert problem(argv) == ""

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (None, "It is a list of texts"),
            ("agent", "It is a list of texts"),
            ([], "It is a list of texts"),
            (["a", 3], "It is a list of texts"),
            ([" "], "The first text names the program"),
            (["a", "x\x00"], "The first text names the program"),
            (["a", "{titel}"], "{titel} stands for nothing; there are {task_id} "),
            (["{}"], "{} stands for nothing"),
        ],
    )
    def test_what_is_wrong(self, argv: object, said: str) -> None:
        assert problem(argv).startswith(said)

    def test_not_with_what_we_ship(self) -> None:
        assert {name: problem(fields["argv"]) for name, fields in SHIPPED.items()} == dict.fromkeys(SHIPPED, "")


@pytest.mark.pure
class TestInstalled:
    def test_a_name_on_the_path_an_absolute_one_or_ours(self, tmp_path: Path) -> None:
        tool = tmp_path / "agent"
        tool.write_text("#!/bin/sh\n")
        assert not is_installed(["agent"], str(tmp_path))
        tool.chmod(0o755)
        assert is_installed(["agent", "-x"], str(tmp_path))
        assert not is_installed(["agent"], "/nowhere")
        assert is_installed([str(tool)], "/nowhere")
        assert is_installed(["{python}"], "")
        assert not is_installed([], str(tmp_path))


@pytest.mark.django_db
def test_the_migration_ships_them() -> None:
    from django.apps import apps
    from django.db import connection
    from django.db.migrations.loader import MigrationLoader

    Profile.objects.all().delete()
    migration = MigrationLoader(connection).get_migration("kanban", "0002_profiles")
    for _ in range(2):
        migration.operations[0].code(apps, None)
    assert {row.name: (row.argv, row.enabled, row.reports) for row in Profile.objects.all()} == {
        name: (fields["argv"], fields.get("enabled"), fields.get("reports", "cli")) for name, fields in SHIPPED.items()
    }


@pytest.mark.pure
@pytest.mark.parametrize(
    ("fields", "can"),
    [
        ({"enabled": True}, True),
        ({"enabled": False, "found_on": ["n1"]}, False),
        ({"enabled": None, "found_on": ["n1"]}, True),
        ({"enabled": None, "found_on": ["n2"]}, False),
        ({"enabled": True, "argv": []}, False),
    ],
)
def test_where_its_workers_can_be_started(fields: dict[str, object], can: bool) -> None:
    assert Profile(**{"name": "x", "argv": ["x"], **fields}).can_spawn("n1") is can  # type: ignore[arg-type]
