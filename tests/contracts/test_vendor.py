"""Vendored files are what their table says, and pages pin the same bytes."""

import base64
import hashlib
import re

import pytest

from tests.contracts.source import VENDOR, files

pytestmark = pytest.mark.static

ROW = re.compile(r"^\| `([^`]+)` \|.*\| `(sha384-[A-Za-z0-9+/=]+)` \|$", re.MULTILINE)
PINNED = re.compile(r"<script\b[^>]*vendor/([\w.-]+)[^>]*>")


def table() -> dict[str, str]:
    return dict(ROW.findall((VENDOR / "README.md").read_text(encoding="utf-8")))


def digest_of(name: str) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384((VENDOR / name).read_bytes()).digest()).decode()


def test_vendored_files_are_the_ones_in_the_table() -> None:
    assert table()
    assert {name: digest_of(name) for name in table()} == table()


def test_every_vendored_file_is_in_the_table_with_its_licence() -> None:
    known = set(table())
    licences = {re.sub(r"(\.min)?\.(js|css)$", ".LICENSE", name) for name in known}
    assert {path.name for path in VENDOR.iterdir()} == known | licences | {"README.md"}


def test_pages_pin_what_the_table_says() -> None:
    tags = [found for path in files(".html") for found in PINNED.finditer(path.read_text(encoding="utf-8"))]
    assert tags
    known = table()
    assert [tag[0] for tag in tags if f'integrity="{known.get(tag[1])}"' not in tag[0]] == []
