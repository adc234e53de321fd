"""Spec files: every reason, in its order; nothing is coerced and nothing raises."""

import copy
import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.specs import (
    EXAMPLE,
    Accepted,
    Found,
    Invalid,
    Limits,
    check_sidecar,
    compile_pattern,
    field_of,
    hint,
    reasons,
    split_command,
    validate,
    validate_document,
)

ABSENT = object()
HTTP = {"type": "http", "url": "http://localhost:3000/", "expect_status": 200, "timeout_s": 60}
COMMAND = {"type": "command", "cmd": "git status", "shell": False, "expect_regex": "clean", "timeout_s": 5}
TCP = {"type": "tcp", "port": 5432, "timeout_s": 5}


class Machine:
    """A machine of a few names and paths; the real one has the same tests in test_specs_context.py."""

    names = {
        "localhost": ["127.0.0.1", "::1"],
        "mapped.example": ["::ffff:127.0.0.1"],
        "two-faced.example": ["127.0.0.1", "93.184.216.34"],
        "far.example": ["93.184.216.34"],
        "metadata.example": ["169.254.169.254"],
        "listed.example": ["10.0.0.5"],
        "listed-metadata.example": ["10.0.0.5", "fd00:ec2::254"],
        "listed-unknown.example": [],
        "odd.example": ["not an address"],
    }
    paths = {
        "/srv/ws/demo": Found("dir", "/srv/ws/demo"),
        "/srv/ws/demo/.git": Found("dir", "/srv/ws/demo/.git"),
        "/srv/ws/demo/a/b/c/d/e/f": Found("dir", "/srv/ws/demo/a/b/c/d/e/f"),
        "/srv/ws/demo/a/b/c/d/e/f/g": Found("dir", "/srv/ws/demo/a/b/c/d/e/f/g"),
        "/srv/ws/demo/file": Found("file", "/srv/ws/demo/file"),
        "/srv/ws/demo/fifo": Found("other", "/srv/ws/demo/fifo"),
        "/srv/ws/demo/locked": Found("unreadable", "/srv/ws/demo/locked"),
        "/srv/ws/demo/link-out": Found("dir", "/etc"),
        "/srv/ws/link-in": Found("dir", "/srv/ws/demo"),
        "/srv/ws/bare": Found("dir", "/srv/ws/bare"),
        "/srv/ws/tree": Found("dir", "/srv/ws/tree"),
        "/srv/ws/tree/.git": Found("file", "/srv/ws/tree/.git", b"gitdir: /srv/ws/demo/.git/worktrees/tree\n"),
        "/srv/ws/torn": Found("dir", "/srv/ws/torn"),
        "/srv/ws/torn/.git": Found("file", "/srv/ws/torn/.git", b" gitdir: no"),
        "/srv/ws/odd": Found("dir", "/srv/ws/odd"),
        "/srv/ws/odd/.git": Found("other", "/srv/ws/odd/.git"),
        "/workshop": Found("dir", "/workshop"),
        "/usr/bin": Found("dir", "/usr/bin"),
        "/bin": Found("dir", "/usr/bin"),
    }
    programs = {
        "/usr/bin/node": "/usr/bin/node",
        "/bin/node": "/usr/bin/node",
        "bin/node": "/usr/bin/node",
        "/usr/bin/python3": "/usr/bin/python3.11",
        "/usr/bin/npm": "/usr/lib/npm/bin/npm-cli.js",
        "/home/x/node": "/home/x/node",
        "/home/x/python3": "/usr/bin/perl",
        "/home/x/bin/node": "/usr/bin/node.sh",
    }

    def resolve(self, host: str) -> list[str]:
        return self.names.get(host.removesuffix("."), [])

    def stat(self, path: str) -> Found:
        return self.paths.get(path, Found("missing", path))

    def which(self, cmd: str) -> str | None:
        return self.programs.get(cmd)


LIMITS = Limits(
    trusted_dirs=("/usr/bin",),
    roots=("/srv/ws",),
    default_cwd="/srv/ws/demo",
    health_hosts=frozenset({"Listed.example", "listed-metadata.example", "listed-unknown.example", "169.254.1.1"}),
    denied_env=("MY_*", "exact", "AWS_PROFILE"),
)
MACHINE = Machine()


def changed(document: dict, **changes: Any) -> dict:
    return {key: value for key, value in {**document, **changes}.items() if value is not ABSENT}


def spec(**changes: Any) -> dict:
    return changed({"name": "web", "cmd": "npm", "healthcheck": HTTP}, **changes)


def of(*specs: Any, **root: Any) -> dict:
    return changed({"specs": list(specs)}, **root)


def verdict(document: object) -> Accepted | Invalid:
    return validate(json.dumps(document), LIMITS, MACHINE)


def reason(document: object) -> str | None:
    found = verdict(document)
    return found.reason if isinstance(found, Invalid) else None


def accepted(document: object) -> Accepted:
    found = verdict(document)
    assert isinstance(found, Accepted), found
    return found


def test_a_small_spec_gets_all_its_defaults_in_the_order_of_the_table() -> None:
    found = accepted(of(spec()))
    assert found == Accepted(
        specs=[
            {
                "name": "web",
                "cmd": "npm",
                "args": [],
                "cwd": "/srv/ws/demo",
                "env": {},
                "ports": [],
                "ttl_minutes": 240,
                "attrs": {},
                "healthcheck": {
                    "type": "http",
                    "timeout_s": 60,
                    "interval_s": 1,
                    "url": "http://localhost:3000/",
                    "expect_status": 200,
                    "period_s": 30,
                    "failure_threshold": 3,
                    "success_threshold": 1,
                },
                "restart": "never",
                "stop_grace_s": 10,
            }
        ],
        warnings=[],
        written_by=None,
        wi_id=None,
    )
    table = "name cmd args cwd env ports ttl_minutes attrs healthcheck restart stop_grace_s"
    assert list(found.specs[0]) == table.split()


def test_a_full_spec_is_kept_as_given() -> None:
    given_spec = {
        "name": "db-1",
        "cmd": "/usr/bin/python3",
        "args": ["-m", "server", "é ☃", ""],
        "cwd": "/srv/ws/tree",
        "env": {"NODE_ENV": "x", "EMPTY": ""},
        "ports": [1024, 65535],
        "ttl_minutes": 1440,
        "attrs": {"a": [1, 2.5, None, True, {"b": "c"}]},
        "healthcheck": {
            "type": "command",
            "timeout_s": 0.5,
            "interval_s": 600,
            "cmd": "'curl' -s",
            "args": ["x y"],
            "shell": True,
            "expect_regex": "^ok$",
            "period_s": 1,
            "failure_threshold": 1,
            "success_threshold": 9,
        },
        "restart": "on-failure",
        "stop_grace_s": 0,
    }
    found = accepted(of(given_spec, spec(healthcheck=TCP), written_by="t_1-1", wi_id="t_1"))
    assert found.specs[0] == given_spec
    assert found.specs[1]["healthcheck"]["port"] == 5432
    assert (found.written_by, found.wi_id, found.warnings) == ("t_1-1", "t_1", [])


def test_integral_numbers_become_integers_and_null_means_absent() -> None:
    nulls = dict.fromkeys(["args", "cwd", "env", "ports", "ttl_minutes", "attrs", "restart", "stop_grace_s"])
    optional = dict.fromkeys(["interval_s", "period_s", "failure_threshold", "success_threshold"])
    assert accepted(of(spec(**nulls, healthcheck={**HTTP, **optional}), wi_id=None)).specs == (
        accepted(of(spec())).specs
    )
    raw = """{"specs": [{"name": "web", "cmd": "npm", "ports": [3000.0, 4e3], "ttl_minutes": 2.4e2,
        "stop_grace_s": -0.0, "healthcheck": {"type": "tcp", "port": 3000.0, "timeout_s": 5.0,
        "interval_s": 0.25, "period_s": 1.5}}]}"""
    found = validate(raw, LIMITS, MACHINE)
    assert isinstance(found, Accepted)
    normal = found.specs[0]
    numbers = [*normal["ports"], normal["ttl_minutes"], normal["stop_grace_s"], *normal["healthcheck"].values()][:-2]
    assert [repr(value) for value in numbers] == ["3000", "4000", "240", "0", "'tcp'", "5", "0.25", "3000", "1.5"]


ROOTS: list[tuple[object, str]] = [
    ([], "not-an-object"),
    ("specs", "not-an-object"),
    (None, "not-an-object"),
    ({}, "specs-missing"),
    ({"specs": None}, "specs-missing"),
    ({"specs": {"0": {}}}, "specs-missing"),
    ({"specs": []}, "specs-empty"),
    (of(*[spec(name=f"s{n}") for n in range(6)]), "specs-too-many (>5)"),
    (of(*[3] * 6), "specs-too-many (>5)"),
    (of(3), "spec[0]: not-an-object"),
    (of(spec(), []), "spec[1]: not-an-object"),
    (of(spec(), spec()), "spec[1]: duplicate-name (web)"),
    (of(spec(), spec(restart="x")), "spec[1]: restart-invalid"),
    (of(spec(), written_by=1, wi_id=1), "written_by-not-string"),
    (of(spec(), written_by="a\0b"), "written_by-not-string"),
    (of(spec(), wi_id=[]), "wi_id-not-string"),
    (of(spec(), wi_id="\ud800"), "wi_id-not-string"),
]

SPECS: list[tuple[dict[str, Any], str]] = [
    ({"name": ABSENT}, "name-missing"),
    ({"name": None}, "name-missing"),
    ({"name": 3}, "name-missing"),
    ({"name": ""}, "name-missing"),
    ({"name": "a" * 65}, "name-too-long (>64)"),
    ({"name": "A" * 65}, "name-too-long (>64)"),
    ({"name": "Web"}, "name-not-kebab-case (Web)"),
    ({"name": "a--b"}, "name-not-kebab-case (a--b)"),
    ({"name": "-a"}, "name-not-kebab-case (-a)"),
    ({"name": "a_b"}, "name-not-kebab-case (a_b)"),
    ({"name": "web\n"}, r"name-not-kebab-case (web\n)"),
    ({"name": "a\0"}, r"name-not-kebab-case (a\x00)"),
    ({"name": "١"}, "name-not-kebab-case (١)"),
    ({"name": "\ud800\u202e"}, r"name-not-kebab-case (\ud800\u202e)"),
    ({"cmd": ABSENT}, "cmd-missing"),
    ({"cmd": ["npm"]}, "cmd-missing"),
    ({"cmd": ""}, "cmd-missing"),
    ({"cmd": "n" * 201}, "cmd-too-long"),
    ({"cmd": "perl"}, "cmd-not-on-allowlist (perl)"),
    ({"cmd": " npm"}, "cmd-not-on-allowlist ( npm)"),
    ({"cmd": "npm\n"}, r"cmd-not-on-allowlist (npm\n)"),
    ({"cmd": "/usr/bin\0/node"}, r"cmd-not-on-allowlist (/usr/bin\x00/node)"),
    ({"cmd": "x" * 200}, f"cmd-not-on-allowlist ({'x' * 200})"),
    ({"args": "x"}, "args-not-array"),
    ({"args": {}}, "args-not-array"),
    ({"args": ["x"] * 65}, "args-too-many (>64)"),
    ({"args": ["x", 3]}, "arg-not-string"),
    ({"args": [None]}, "arg-not-string"),
    ({"args": ["a\0b"]}, "arg-not-string"),
    ({"args": ["\udfff"]}, "arg-not-string"),
    ({"args": ["x" * 501]}, "arg-too-long"),
    ({"args": ["x" * 501, 3]}, "arg-too-long"),
    ({"cwd": 3}, "cwd-not-string"),
    ({"cwd": False}, "cwd-not-string"),
    ({"cwd": "/srv/ws/\0"}, "cwd-not-string"),
    ({"cwd": "/srv/ws/" + "x" * 4091}, "cwd-too-long"),
    ({"cwd": "work/demo"}, "cwd-not-absolute"),
    ({"cwd": ""}, "cwd-not-absolute"),
    ({"cwd": "~/demo"}, "cwd-not-absolute"),
    ({"cwd": "/etc"}, "cwd-outside-allowed-root"),
    ({"cwd": "/workshop"}, "cwd-outside-allowed-root"),
    ({"cwd": "/srv/ws/demo/link-out"}, "cwd-outside-allowed-root"),
    ({"cwd": "/nowhere"}, "cwd-outside-allowed-root"),
    ({"cwd": "/srv/ws/none"}, "directory does not exist: /srv/ws/none"),
    ({"cwd": "/srv/ws/\n# None"}, r"directory does not exist: /srv/ws/\n# None"),
    ({"cwd": "/srv/ws/demo/locked"}, "directory does not exist: /srv/ws/demo/locked"),
    ({"cwd": "/srv/ws/demo/file"}, "path is not a directory: /srv/ws/demo/file"),
    ({"cwd": "/srv/ws/demo/fifo"}, "path is not a directory: /srv/ws/demo/fifo"),
    ({"cwd": "/srv/ws/bare"}, "no .git directory or worktree pointer at /srv/ws/bare"),
    ({"cwd": "/srv/ws/odd"}, "no .git directory or worktree pointer at /srv/ws/odd"),
    (
        {"cwd": "/srv/ws/demo/a/b/c/d/e/f/g"},
        "no .git directory or worktree pointer at /srv/ws/demo/a/b/c/d/e/f/g",
    ),
    (
        {"cwd": "/srv/ws/torn"},
        '.git file present but not a worktree pointer (no "gitdir:" prefix): /srv/ws/torn',
    ),
    ({"env": []}, "env-not-object"),
    ({"env": {f"K{n}": "" for n in range(33)}}, "env-too-many (>32)"),
    ({"env": {"1A": ""}}, "env-key-invalid-shape (1A)"),
    ({"env": {"A-B": 3}}, "env-key-invalid-shape (A-B)"),
    ({"env": {"A\n": ""}}, r"env-key-invalid-shape (A\n)"),
    ({"env": {"": ""}}, "env-key-invalid-shape ()"),
    ({"env": {"É": ""}}, "env-key-invalid-shape (É)"),
    ({"env": {"x" * 999 + "-" * 9: ""}}, f"env-key-invalid-shape ({'x' * 999}…)"),
    ({"env": {"PATH": 3}}, "env-key-denied (PATH)"),
    ({"env": {"A": 3}}, "env-value-not-string (A)"),
    ({"env": {"A": None}}, "env-value-not-string (A)"),
    ({"env": {"A": "\0"}}, "env-value-not-string (A)"),
    ({"env": {"A": "x" * 1001}}, "env-value-too-long (A)"),
    ({"env": {"A": "x" * 1001, "PATH": ""}}, "env-value-too-long (A)"),
    ({"ports": 3000}, "ports-not-array"),
    ({"ports": list(range(2000, 2021))}, "ports-too-many (>20)"),
    ({"ports": [80]}, "port-invalid (80)"),
    ({"ports": [1023]}, "port-invalid (1023)"),
    ({"ports": [65536]}, "port-invalid (65536)"),
    ({"ports": [3000.5]}, "port-invalid (3000.5)"),
    ({"ports": ["3000"]}, "port-invalid (3000)"),
    ({"ports": [True]}, "port-invalid (true)"),
    ({"ports": [None]}, "port-invalid (none)"),
    ({"ports": [[3000]]}, "port-invalid ([3000])"),
    ({"ports": [3000, 3000, "x"]}, "port-duplicate (3000)"),
    ({"ttl_minutes": 0}, "ttl-invalid"),
    ({"ttl_minutes": True}, "ttl-invalid"),
    ({"ttl_minutes": "240"}, "ttl-invalid"),
    ({"ttl_minutes": 1.5}, "ttl-invalid"),
    ({"ttl_minutes": 1440.5}, "ttl-invalid"),
    ({"ttl_minutes": 1441}, "ttl-too-long (>1440min)"),
    ({"ttl_minutes": 1e300}, "ttl-too-long (>1440min)"),
    ({"attrs": []}, "attrs-not-object"),
    ({"attrs": "{}"}, "attrs-not-object"),
    ({"attrs": {"a": "x" * 2041}}, "attrs-too-large (>2048B)"),
    ({"attrs": {"a": "é" * 1021}}, "attrs-too-large (>2048B)"),
    ({"attrs": {"a": ["\0"]}}, "attrs-not-serializable (NUL character)"),
    ({"attrs": {"\0": 1}}, "attrs-not-serializable (NUL character)"),
    (
        {"attrs": {"a": "\ud800"}},
        r"attrs-not-serializable ('utf-8' codec can't encode character '\ud800' in position 6: surrogates not allowed)",
    ),
    ({"healthcheck": ABSENT}, "healthcheck-missing"),
    ({"healthcheck": None}, "healthcheck-missing"),
    ({"healthcheck": "http"}, "healthcheck-missing"),
    ({"restart": "Always"}, "restart-invalid"),
    ({"restart": True}, "restart-invalid"),
    ({"restart": ["never"]}, "restart-invalid"),
    ({"stop_grace_s": -1}, "stop-grace-invalid"),
    ({"stop_grace_s": 61}, "stop-grace-invalid"),
    ({"stop_grace_s": 0.5}, "stop-grace-invalid"),
    ({"stop_grace_s": False}, "stop-grace-invalid"),
]
WORKDIR = ("cwd-not-absolute", "cwd-outside", "directory ", "path ", "no .git", ".git ")

CHECKS: list[tuple[dict[str, Any], str]] = [
    (changed(HTTP, type=ABSENT), "healthcheck-type-invalid (none)"),
    (changed(HTTP, type="grpc"), "healthcheck-type-invalid (grpc)"),
    (changed(HTTP, type=["http"]), 'healthcheck-type-invalid (["http"])'),
    (changed(HTTP, type="HTTP"), "healthcheck-type-invalid (HTTP)"),
    *[
        (changed(TCP, timeout_s=value), "healthcheck-timeout-invalid")
        for value in (ABSENT, None, 0, -1, 3600.1, "60", True, [60], 1e308)
    ],
    *[
        (changed(TCP, interval_s=value), "healthcheck-interval-invalid")
        for value in (0, 601, "1", True, [], -0.5, False)
    ],
    *[(changed(HTTP, url=value), "healthcheck-url-missing") for value in (ABSENT, None, "", 3)],
    (changed(HTTP, url="/health"), "healthcheck-url-not-absolute"),
    (changed(HTTP, url="http://far.example/"), "healthcheck-url-not-allowed (far.example)"),
    (changed(HTTP, expect_status=ABSENT), "healthcheck-expect-status-missing"),
    (changed(HTTP, expect_status=None), "healthcheck-expect-status-missing"),
    *[
        (changed(HTTP, expect_status=value), "healthcheck-expect-status-invalid")
        for value in (99, 600, "200", True, 200.5, [200])
    ],
    *[(changed(COMMAND, cmd=value), "healthcheck-cmd-missing") for value in (ABSENT, None, "", ["git"])],
    (changed(COMMAND, cmd="git " + "x" * 997), "healthcheck-cmd-too-long"),
    *[(changed(COMMAND, shell=value), "healthcheck-shell-not-boolean") for value in (ABSENT, None, 0, "false")],
    *[
        (changed(COMMAND, expect_regex=value), "healthcheck-expect-regex-missing")
        for value in (ABSENT, None, "", 3)
    ],
    (changed(COMMAND, expect_regex="(" * 501), "healthcheck-expect-regex-too-long"),
    (
        changed(COMMAND, expect_regex="("),
        "healthcheck-expect-regex-invalid (missing ), unterminated subpattern at position 0)",
    ),
    (changed(COMMAND, expect_regex="(a+)+"), "healthcheck-expect-regex-unsafe"),
    (changed(COMMAND, cmd="perl -e 1"), "healthcheck-cmd-not-on-allowlist (perl)"),
    (changed(COMMAND, cmd="  "), "healthcheck-cmd-not-on-allowlist (  )"),
    (changed(COMMAND, cmd="''"), "healthcheck-cmd-not-on-allowlist ()"),
    (changed(COMMAND, cmd="git 'x"), "healthcheck-cmd-not-on-allowlist (git 'x)"),
    (changed(COMMAND, cmd="git;id"), "healthcheck-cmd-not-on-allowlist (git;id)"),
    (changed(COMMAND, cmd="'my tool' x"), "healthcheck-cmd-not-on-allowlist (my tool)"),
    (changed(COMMAND, cmd="git \0"), "healthcheck-cmd-not-on-allowlist (git)"),
    *[
        (changed(COMMAND, cmd=f"git '{char}'"), "healthcheck-shell-not-allowed")
        for char in (";", "&", "|", "<", ">", "$", "(", ")", "`", "\n")
    ],
    *[
        (changed(COMMAND, args=value), "healthcheck-args-invalid")
        for value in ("x", [1], [None], ["x"] * 65, ["x" * 501], ["\0"])
    ],
    *[(changed(TCP, port=value), "healthcheck-port-invalid") for value in (ABSENT, None, 0, 65536, "80", True, 80.5)],
    *[(changed(TCP, period_s=value), "healthcheck-period-invalid") for value in (0, 0.9, 601, "30", True)],
    *[
        (changed(TCP, **{key: value}), "healthcheck-threshold-invalid")
        for key in ("failure_threshold", "success_threshold")
        for value in (0, 1001, 1.5, "3", True)
    ],
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), ROOTS)
def test_a_fault_of_the_file_is_named(document: object, expected: str) -> None:
    assert reason(document) == expected


@pytest.mark.parametrize(("changes", "expected"), SPECS)
def test_a_fault_of_a_spec_is_named(changes: dict[str, Any], expected: str) -> None:
    prefix = "invalid-workdir: " if expected.startswith(WORKDIR) else ""
    assert reason(of(spec(name="first"), spec(**changes))) == f"{prefix}spec[1]: {expected}"


@pytest.mark.parametrize(("check", "expected"), CHECKS)
def test_a_fault_of_a_healthcheck_is_named(check: dict[str, Any], expected: str) -> None:
    assert reason(of(spec(healthcheck=check))) == f"spec[0]: {expected}"


# One fault of each step, in the order of the checks; `key: value` is merged into the spec, a "." into its check.
STEPS: list[tuple[str, Any, str]] = [
    ("name", "Web", "name-not-kebab-case (Web)"),
    ("cmd", "perl", "cmd-not-on-allowlist (perl)"),
    ("args", 1, "args-not-array"),
    ("cwd", "/etc", "cwd-outside-allowed-root"),
    ("env", 1, "env-not-object"),
    ("ports", 1, "ports-not-array"),
    ("ttl_minutes", "x", "ttl-invalid"),
    ("attrs", 1, "attrs-not-object"),
    (".type", "x", "healthcheck-type-invalid (x)"),
    (".timeout_s", 0, "healthcheck-timeout-invalid"),
    (".interval_s", 0, "healthcheck-interval-invalid"),
    (".", "", ""),
    (".period_s", 0, "healthcheck-period-invalid"),
    (".failure_threshold", 0, "healthcheck-threshold-invalid"),
    ("restart", 1, "restart-invalid"),
    ("stop_grace_s", -1, "stop-grace-invalid"),
]
OF_TYPE: dict[str, tuple[dict, list[tuple[str, Any, str]]]] = {
    "http": (
        HTTP,
        [
            (".url", "x", "healthcheck-url-not-absolute"),
            (".expect_status", 1, "healthcheck-expect-status-invalid"),
        ],
    ),
    "command": (
        COMMAND,
        [
            (".cmd", "perl " + "x" * 1000, "healthcheck-cmd-too-long"),
            (".shell", 1, "healthcheck-shell-not-boolean"),
            (".expect_regex", "(a+)+", "healthcheck-expect-regex-unsafe"),
            (".cmd", "perl;", "healthcheck-cmd-not-on-allowlist (perl;)"),
            (".cmd", "git ;", "healthcheck-shell-not-allowed"),
            (".args", 1, "healthcheck-args-invalid"),
        ],
    ),
    "tcp": (TCP, [(".port", 0, "healthcheck-port-invalid")]),
}  # fmt: skip


def broken(document: dict, *steps: tuple[str, Any, str]) -> dict:
    document = copy.deepcopy(document)
    for key, value, _ in steps:
        if key.startswith("."):
            document["healthcheck"][key[1:]] = value
        else:
            document[key] = value
    return document


@pytest.mark.parametrize("kind", OF_TYPE)
def test_of_two_faults_the_earlier_one_is_named(kind: str) -> None:
    check, own = OF_TYPE[kind]
    middle = next(position for position, step in enumerate(STEPS) if step[0] == ".")
    steps = [*STEPS[:middle], *own, *STEPS[middle + 1 :]]
    tried = 0
    for position, earlier in enumerate(steps):
        for later in steps[position + 1 :]:
            if earlier[0] == later[0]:
                continue
            prefix = "invalid-workdir: " if earlier[0] == "cwd" else ""
            assert reason(of(broken(spec(healthcheck=check), later, earlier))) == f"{prefix}spec[0]: {earlier[2]}"
            tried += 1
    assert tried >= 100


def test_an_earlier_spec_is_named_before_a_later_one_and_the_root_last() -> None:
    assert reason(of(spec(stop_grace_s=-1), spec(name=""), written_by=1)) == "spec[0]: stop-grace-invalid"
    assert reason(of(spec(), spec(), spec(name=""), written_by=1)) == "spec[1]: duplicate-name (web)"
    assert reason(of(spec(), written_by=1)) == "written_by-not-string"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"{} {}", "Extra data: line 1 column 4 (char 3)"),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        ("\ufeff{}", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": "\n"}', "Invalid control character at: line 1 column 8 (char 7)"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte"),
        ('{"a": "\ud800"}', "'utf-8' codec can't decode byte 0xed in position 7: invalid continuation byte"),
        ("{}".encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("[" * 65536, "nested too deep"),
        ('{"specs":' * 5000, "nested too deep"),
        ("[" * 102 + "]" * 102, "nested too deep"),
    ],
)
def test_what_is_not_json_is_refused_with_the_parsers_message(raw: bytes | str, expected: str) -> None:
    assert validate(raw, LIMITS, MACHINE) == Invalid(f"json-parse: {expected}")


def test_depth_is_bounded_whatever_the_stack() -> None:
    assert reason([[]] * 100) == "not-an-object"
    nested = json.loads("[" * 101 + "]" * 101)
    assert validate_document(nested, LIMITS, MACHINE) == Invalid("not-an-object")
    assert validate_document([nested], LIMITS, MACHINE) == Invalid("json-parse: nested too deep")

    def deep(left: int) -> Accepted | Invalid:
        return deep(left - 1) if left else validate('{"a": ' + "[" * 90 + "]" * 90 + "}", LIMITS, MACHINE)

    assert deep(sys.getrecursionlimit() // 2) == Invalid("specs-missing")


def test_a_number_of_ten_thousand_digits_is_refused() -> None:
    assert (reason_of('{"specs": ' + "9" * 10000 + "}") or "").startswith("json-parse: Exceeds the limit")


def reason_of(raw: bytes | str) -> str | None:
    found = validate(raw, LIMITS, MACHINE)
    return found.reason if isinstance(found, Invalid) else None


def test_size_counts_in_bytes_and_before_anything_else() -> None:
    body = json.dumps(of(spec(), note="é"), ensure_ascii=False)
    size = len(body.encode())
    fits = body + " " * (65536 - size)
    assert isinstance(validate(fits, LIMITS, MACHINE), Accepted)
    assert isinstance(validate(fits.encode(), LIMITS, MACHINE), Accepted)
    for raw in (fits + " ", (fits + " ").encode(), b"\xff" * 65537, "\ud800" * 30000):
        assert validate(raw, LIMITS, MACHINE) == Invalid("unreadable: larger than 65536 bytes")
    assert validate("[[]]", Limits(max_bytes=3), MACHINE) == Invalid("unreadable: larger than 3 bytes")


def test_an_infinite_number_is_no_number_and_no_attribute() -> None:
    def raw(text: str) -> str:
        return json.dumps(of(spec())).replace('"cmd"', f'{text}, "cmd"')

    assert reason_of(raw('"ttl_minutes": 1e999')) == "spec[0]: ttl-invalid"
    assert reason_of(raw('"ports": [1e999]')) == "spec[0]: port-invalid (Infinity)"
    assert (reason_of(raw('"attrs": {"a": 1e999}')) or "").startswith("spec[0]: attrs-not-serializable (Out of range")


def test_bounds_are_included() -> None:
    accepted(
        of(
            spec(
                name="a" * 64,
                args=["x" * 500] * 64,
                env={f"K{number}": "é" * 1000 if number == 0 else "" for number in range(32)},
                ports=list(range(2000, 2020)),
                attrs={"a": "x" * 2040},
                ttl_minutes=1,
                stop_grace_s=60,
                healthcheck={**TCP, "timeout_s": 3600, "interval_s": 600, "period_s": 600},
            ),
            *[spec(name=f"s{number}") for number in range(4)],
        )
    )
    long = "git " + "x" * 996
    accepted(of(spec(healthcheck={**COMMAND, "cmd": long, "expect_regex": "x" * 500, "args": ["x" * 500] * 64})))


def test_limits_say_how_many_specs_and_where_a_spec_without_cwd_runs() -> None:
    document = of(spec(), spec(name="b"))
    one = Limits(max_specs=1, roots=("/srv/ws",), default_cwd="/srv/ws/demo")
    assert validate_document(document, one, MACHINE) == Invalid("specs-too-many (>1)")
    nowhere = Limits(roots=("/srv/ws",))
    assert validate_document(document, nowhere, MACHINE) == Invalid("spec[0]: cwd-not-string")
    outside = Limits(roots=("/srv/ws",), default_cwd="/etc")
    assert validate_document(document, outside, MACHINE) == (
        Invalid("invalid-workdir: spec[0]: cwd-outside-allowed-root")
    )
    everywhere = Limits(roots=("/",), default_cwd="/srv/ws/link-in")
    assert isinstance(validate_document(document, everywhere, MACHINE), Accepted)


@pytest.mark.parametrize("cwd", ["/srv/ws/demo", "/srv/ws/tree", "/srv/ws/link-in", "/srv/ws/demo/a/b/c/d/e/f"])
def test_a_work_tree_or_up_to_six_folders_below_it_will_do(cwd: str) -> None:
    assert accepted(of(spec(cwd=cwd))).specs[0]["cwd"] == cwd


@pytest.mark.parametrize(
    ("cmd", "allowed"),
    [
        *[(cmd, True) for cmd in ("npm", "NPM", "npm.cmd", "Node.EXE", "gradlew.bat", "bash.sh", "wget")],
        *[(cmd, True) for cmd in ("/usr/bin/node", "/bin/node", "/usr/bin/python3", "/home/x/bin/node")],
        *[(cmd, False) for cmd in ("node.exe.cmd", ".exe", "perl", "npm.py")],
        *[(cmd, False) for cmd in ("no\u212ade", "doc\u212aer", "node ", ".")],
        *[(cmd, False) for cmd in ("./npm", "bin/node", "../usr/bin/node")],
        *[(cmd, False) for cmd in ("C:\\node.exe", "/usr/bin/", "/usr/bin/perl")],
        # Its real path is in no trusted directory; a link of an allowed name to another program; nothing there.
        *[(cmd, False) for cmd in ("/usr/bin/npm", "/home/x/node", "/home/x/python3", "/usr/bin/git")],
    ],
)  # fmt: skip
def test_the_allowlist_of_programs(cmd: str, allowed: bool) -> None:
    assert reason(of(spec(cmd=cmd))) == (None if allowed else f"spec[0]: cmd-not-on-allowlist ({reasons.shown(cmd)})")


def test_the_settings_choose_the_programs() -> None:
    ruby = Limits(executables=frozenset({"ruby"}), roots=("/srv/ws",), default_cwd="/srv/ws/demo")
    assert isinstance(validate_document(of(spec(cmd="ruby")), ruby, MACHINE), Accepted)
    assert validate_document(of(spec()), ruby, MACHINE) == Invalid("spec[0]: cmd-not-on-allowlist (npm)")


@pytest.mark.parametrize(
    "key",
    [
        *("PATH", "path", "LD_PRELOAD", "ld_x", "LD_", "DYLD_INSERT_LIBRARIES", "NODE_OPTIONS", "PYTHONPATH", "PYTHON"),
        *("BASH_ENV", "ENV", "env", "PERL5OPT", "RUBYOPT", "JAVA_TOOL_OPTIONS", "GIT_DIR", "GIT_SSH_COMMAND"),
        *("AWS_ACCESS_KEY_ID", "AZURE_X", "GCP_X", "GOOGLE_APPLICATION_CREDENTIALS", "GH_TOKEN", "GITHUB_TOKEN"),
        *("OPENAI_BASE_URL", "ANTHROPIC_MODEL", "COPILOT_X", "DOCKER_AUTH", "DOCKER_AUTH_CONFIG", "NPM_TOKEN"),
        *("DOCKER_AUTHX", "SECRET", "MY_APP_SECRET", "SECRET_KEY", "A_TOKEN_B", "__TOKEN__", "APIKEY", "DB_PASSWORD"),
        *("PASSWD", "X_PRIVKEY", "X_CREDENTIALS", "AUTH", "X_AUTH_X", "PAT", "ADO_PAT", "Api_Key", "X_API_KEY_X"),
        *("PRIVATE_KEY", "TLS_PRIVATE_KEY", "db_password"),
        # Exempt only as written, and never from what a project adds.
        *("aws_region", "Aws_Profile", "AWS_PROFILE", "AWS_REGION_", "my_x", "MY_", "EXACT"),
    ],
)
def test_a_key_that_may_carry_a_credential_is_denied(key: str) -> None:
    assert reason(of(spec(env={key: "x"}))) == f"spec[0]: env-key-denied ({key})"


@pytest.mark.parametrize(
    "key",
    [
        *("APP_PATH", "PATH_X", "AUTHOR_NAME", "NODE_ENV", "PATTERN"),
        *("X_PATS", "SECRETS", "TOKENS", "TOKENIZER", "KEY"),
        *("API", "API__KEY", "KEY_API", "APIKEYS", "PUBLIC_KEY", "API_X_KEY", "PRIVATEKEY", "GITHUB_USER", "LD", "GIT"),
        *("AWS_REGION", "AWS_DEFAULT_REGION", "AZURE_REGION", "GCP_REGION"),
        *("HOME", "_", "MYX", "EXACTLY", "DATABASE_URL"),
    ],
)  # fmt: skip
def test_a_key_of_a_project_passes(key: str) -> None:
    assert accepted(of(spec(env={key: "x"}))).specs[0]["env"] == {key: "x"}


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:3000/", "HTTPS://LOCALHOST"),
        *("http://localhost./x?y=z#f", "http://127.0.0.1:1/", "http://[::1]/"),
        *("http://127.9.9.9/", "http://[::ffff:127.0.0.1]:8080/", "http://mapped.example/", "http://localhost:/"),
        *("http://listed.example/", "http://LISTED.EXAMPLE.:80/"),
        *("http://listed-unknown.example/", "http://localhost#@x"),
    ],
)  # fmt: skip
def test_a_url_of_this_machine_or_of_a_listed_host_is_allowed(url: str) -> None:
    assert accepted(of(spec(healthcheck={**HTTP, "url": url}))).specs[0]["healthcheck"]["url"] == url


@pytest.mark.parametrize(
    ("url", "host"),
    [
        *[(f"http://{host}/", host) for host in ("far.example", "two-faced.example", "metadata.example", "nx.example")],
        *[(f"http://{host}/", host) for host in ("odd.example", "10.0.0.1")],
        *[(f"http://{host}/", host) for host in ("0.0.0.0", "169.254.169.254", "169.254.1.1")],
        # What the resolver of libc would read as an address.
        *[(f"http://{host}/", host) for host in ("2130706433", "0x7f.1", "127.1")],
        *[(f"http://{host}/", host) for host in ("0177.0.0.1", "127.0.0.1.", "0x7f000001")],
        *[(f"http://{host}/", host) for host in ("1", "0x", "localhost.1", "127.0.0.01", "0.0.0.0x1")],
        *[(f"http://[{host}]/", host) for host in ("::", "fe80::1")],
        *[(f"http://[{host}]/", host) for host in ("fd00:ec2::254", "::ffff:169.254.169.254", "::127.0.0.1")],
        *[(f"http://[{host}]/", host) for host in ("2002:7f00:1::", "64:ff9b::7f00:1", "::ffff:10.0.0.1")],
        ("http://listed-metadata.example/", "listed-metadata.example"),
        ("http://user@localhost/", "localhost"),
        ("http://user:password@localhost/", "localhost"),
        ("http://localhost@far.example/", "far.example"),
        ("http://@localhost/", "localhost"),
        ("http://localhost:0/", "localhost"),
        ("http://localhost:00000/", "localhost"),
        ("http://%6cocalhost/", "%6cocalhost"),
        ("http://local,host/", "local,host"),
        ("http://-localhost/", "-localhost"),
        ("http://local..host/", "local..host"),
        ("http://./", "."),
    ],
)  # fmt: skip
def test_any_other_host_is_refused(url: str, host: str) -> None:
    assert reason(of(spec(healthcheck={**HTTP, "url": url}))) == f"spec[0]: healthcheck-url-not-allowed ({host})"


@pytest.mark.parametrize(
    "url",
    [
        *("/", "localhost", "localhost:3000", "//localhost/", "ftp://localhost/", "file:///etc/passwd", "javascript:1"),
        *("http:localhost", "http:/localhost", "http:///x", "http://", "http://:80/", "http://?", "unix:///x"),
        *(" http://localhost/", "http://localhost/\n"),
        *("http://local\thost/", "http://localhost/ x", "\x00http://localhost"),
        *("http://localhost\\@far.example/", "http:\\\\localhost"),
        *("http://localhost/é", "http://ⓛocalhost/", "http://\ud800/"),
        *("http://localhost:99999/", "http://localhost:x/"),
        *("http://localhost:-1/", "http://localhost:8 0/", "http://a:b:80/"),
        *("http://[::1", "http://::1/"),
        *("http://[::1]far.example/", "http://[::1]far.example:80/", "http://[localhost]/"),
        *("http://[fe80::1%25lo]/", "http://[fe80::1%251]/", "http://x[::1]/", "http://[::1]:80:80/", "http://[]/"),
    ],
)  # fmt: skip
def test_what_is_no_absolute_http_url_is_refused(url: str) -> None:
    assert reason(of(spec(healthcheck={**HTTP, "url": url}))) == "spec[0]: healthcheck-url-not-absolute"


def test_what_leads_to_a_metadata_service_never_passes() -> None:
    hosts = [
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd20:ce::254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "64:ff9b::",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
    ]
    listed = Limits(roots=("/srv/ws",), default_cwd="/srv/ws/demo", health_hosts=frozenset({*hosts, "2002:a00:1::"}))
    for host in hosts:
        url = f"http://[{host}]/" if ":" in host else f"http://{host}/"
        found = validate_document(of(spec(healthcheck={**HTTP, "url": url})), listed, MACHINE)
        assert found == Invalid(f"spec[0]: healthcheck-url-not-allowed ({host})")
    url = "http://[2002:a00:1::]/"
    assert isinstance(validate_document(of(spec(healthcheck={**HTTP, "url": url})), listed, MACHINE), Accepted)


def verdict_of(pattern: str) -> str | None:
    found = reason(of(spec(healthcheck={**COMMAND, "expect_regex": pattern})))
    return found and found.removeprefix("spec[0]: healthcheck-expect-regex-")


@pytest.mark.parametrize(
    "pattern",
    [
        *("^ok$", "a+b*c{2,}", "(a+b)?", "(?:a+){3}", "(a{2,5})*", "(?i)x|y", "[[a]x", "é", "." * 500, "(a{0,9})+"),
        *(r"\d+\.\d+", "(?P<n>a)", "(a*)(b*)", "(?:a|b)*", r"[+*]+", r"(\*a)+", "x" * 500, "(a*)?"),
    ],
)
def test_a_pattern_of_linear_time_is_accepted(pattern: str) -> None:
    assert verdict_of(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+", "(a*)*", "(a|b*c)+?", "((x{2,})y)*", "(?:(?:a+)?b)+", "(a+){2,}", "(?i:a*)*", "(?:x(?:a|b+)?)*"),
        *("(?=a)", "(?!a)", "(?<=a)b", "(?<!ab)c", r"(a)\1", "(?P<n>a)(?P=n)", "(a)?(?(1)b)", "(?=(a*)*)"),
        *("a++", "(?>a)", "a{1001}", "(?>a*)*", r"a\Z", "((((a{30}){30}){30}){30})"),
    ],
)
def test_a_pattern_that_re2_cannot_run_or_that_nests_quantifiers_is_unsafe(pattern: str) -> None:
    assert verdict_of(pattern) == "unsafe"


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "*a", "a**", "[b-a]", "["),
        *("\\", r"\C", r"\pL", "(?P<n>a)(?P<n>b)", "(?P<a\nb>x)", "a{2,1}", "(?L)a"),
        *("(?<=a*)b", "(?<!(a|bc))", "(?<=a*)(b+)+", "a{99999999999}", r"\U00110000", r"\UFFFFFFFF", "(?au)a", "(?z)"),
    ],
)
def test_a_pattern_that_re_cannot_compile_is_invalid(pattern: str) -> None:
    with pytest.raises((re.error, ValueError, OverflowError)) as raised:
        re.compile(pattern)
    assert verdict_of(pattern) == f"invalid ({reasons.shown(str(raised.value))})"


def test_a_pattern_that_cannot_be_stored_is_invalid() -> None:
    assert verdict_of("a\0") == verdict_of("\ud800") == "invalid (NUL or a lone surrogate)"


def test_a_pattern_that_is_too_deep_for_the_parser_is_invalid() -> None:
    pattern = "(" * 250 + ")" * 250

    def deep(left: int) -> str | None:
        return deep(left - 1) if left else reason(of(spec(healthcheck={**COMMAND, "expect_regex": pattern})))

    found = deep(sys.getrecursionlimit() - 350)
    assert found == "spec[0]: healthcheck-expect-regex-invalid (nested too deep)"


def test_refused_patterns_say_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    reason(of(spec(healthcheck={**COMMAND, "expect_regex": "(?=a)"})))
    assert compile_pattern("cl[ea]+n").search("all clean") is not None
    assert capfd.readouterr().err == ""


def test_unknown_keys_are_listed() -> None:
    document = of(spec(foo=1, healthcheck={**HTTP, "port": 1}), **{"nam\ne": 1, "x" * 100: 2})
    assert accepted(document).warnings == [
        r'unknown key "nam\ne"',
        f'unknown key "{"x" * 64}"',
        'spec[0]: unknown key "foo"',
        'spec[0]: healthcheck: unknown key "port"',
    ]
    many = accepted(of(spec(**{f"k{number}": 1 for number in range(1000)}))).warnings
    assert (len(many), many[-1]) == (21, "and 980 more unknown keys")
    assert len(accepted(of(spec(**{f"k{number}": 1 for number in range(20)}))).warnings) == 20


def test_the_last_of_two_equal_keys_wins() -> None:
    raw = json.dumps(of(spec())).replace('"cmd"', '"name": "later", "cmd"')
    found = validate(raw, LIMITS, MACHINE)
    assert isinstance(found, Accepted)
    assert found.specs[0]["name"] == "later"


def test_a_document_is_not_changed_by_its_validation() -> None:
    document = of(spec(args=["a"], env={"A": "b"}, ports=[3000.0]))
    before = copy.deepcopy(document)
    found = validate_document(document, LIMITS, MACHINE)
    assert isinstance(found, Accepted)
    found.specs[0]["args"].append("c")
    found.specs[0]["env"]["C"] = "d"
    assert document == before


def test_a_document_that_json_cannot_express_is_refused() -> None:
    for document in (
        of(spec(ports=[10**5000])),
        of(spec(ports=[{1, 2}])),
        of(spec(env={3: "x"})),
        of(spec(attrs={"a": {1}})),
        of(spec(healthcheck={**TCP, "timeout_s": float("nan")})),
    ):
        assert isinstance(validate_document(document, LIMITS, MACHINE), Invalid)
    assert validate_document(of(spec(ports=[10**5000])), LIMITS, MACHINE) == Invalid("spec[0]: port-invalid (int)")


def test_a_sidecar_speaks_for_its_agent_and_work_item() -> None:
    def check(**root: Any) -> Invalid | None:
        return check_sidecar(accepted(of(spec(), **root)), "t_1-2", "t_1")

    assert check(written_by="t_1-2", wi_id="t_1") is None
    assert check(written_by="t_1-3", wi_id="t_2") == Invalid("written-by-mismatch (expected t_1-2, got t_1-3)")
    assert check(wi_id="t_1") == Invalid("written-by-mismatch (expected t_1-2, got none)")
    assert check(written_by="t_1-2", wi_id="T_1") == Invalid("wi-id-mismatch (expected t_1, got T_1)")
    assert check(written_by="t_1-2") == Invalid("wi-id-mismatch (expected t_1, got none)")


def test_the_reasons_of_acceptance() -> None:
    assert reasons.SIDECAR_MISSING == "sidecar-missing"
    assert reasons.name_already_active("web") == "name-already-active (web)"
    assert reasons.already_running("web") == "already-running (web)"
    assert reasons.port_conflict(3000, "demo/web") == "port-conflict (3000: demo/web)"
    assert reasons.quota_exceeded(50) == "quota-exceeded (50)"


def test_words_are_split_as_a_posix_shell_would() -> None:
    assert split_command("""'/opt/my tool/x' a\\ b "c 'd'" '' $HOME #x""") == (
        ["/opt/my tool/x", "a b", "c 'd'", "", "$HOME", "#x"]
    )
    for cmd in ("'", '"', "a\\"):
        with pytest.raises(ValueError):
            split_command(cmd)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("spec[0]: name-missing", (0, "name")),
        ("spec[12]: duplicate-name (web)", (12, "name")),
        ("spec[1]: arg-too-long", (1, "args")),
        ("spec[1]: args-not-array", (1, "args")),
        ("invalid-workdir: spec[2]: no .git directory or worktree pointer at /x", (2, "cwd")),
        ("spec[0]: not-an-object", (0, None)),
        ("spec[0]: healthcheck-missing", (0, "healthcheck")),
        ("spec[0]: healthcheck-url-not-allowed (x)", (0, "healthcheck.url")),
        ("spec[0]: healthcheck-shell-not-boolean", (0, "healthcheck.shell")),
        ("spec[0]: healthcheck-shell-not-allowed", (0, "healthcheck.cmd")),
        ("spec[0]: healthcheck-expect-regex-unsafe", (0, "healthcheck.expect_regex")),
        ("spec[0]: port-invalid (spec[3]: name-missing)", (0, "ports")),
        ("specs-empty", (None, "specs")),
        ("written_by-not-string", (None, "written_by")),
        ("wi-id-mismatch (expected A, got B)", (None, "wi_id")),
        ("name-already-active (web)", (None, "name")),
        ("port-conflict (3000: x)", (None, "ports")),
        ("json-parse: x", (None, None)),
        ("quota-exceeded (5)", (None, None)),
        ("xspec[0]: name-missing", (None, None)),
        ("", (None, None)),
    ],
)
def test_a_reason_belongs_to_a_field(text: str, place: tuple[int | None, str | None]) -> None:
    assert field_of(text) == place


def test_every_reason_of_a_spec_has_its_field() -> None:
    for changes, _ in SPECS:
        index, field = field_of(reason(of(spec(**changes))) or "")
        assert (index, field) == (0, *changes)
    for check, _ in CHECKS:
        index, field = field_of(reason(of(spec(healthcheck=check))) or "")
        assert index == 0
        assert field is not None
        assert field.startswith("healthcheck.")


class TestHint:
    def test_its_example_is_valid(self) -> None:
        text = hint("/home/andon/agents/t_1-1/managed-spawn.json", "t_1-1", "t_1", project="demo")
        example = json.loads(text.partition("```json\n")[2].partition("```")[0])
        found = accepted(example)
        assert found.warnings == []
        assert check_sidecar(found, "t_1-1", "t_1") is None
        assert found.specs == accepted(dict(EXAMPLE)).specs

    def test_its_checks_are_valid(self) -> None:
        lines = [line for line in hint("x", "a", "b").splitlines() if line.startswith('{"type"')]
        assert [json.loads(line)["type"] for line in lines] == ["tcp", "command"]
        for line in lines:
            accepted(of(spec(healthcheck=json.loads(line))))

    def test_it_says_what_to_do(self) -> None:
        text = hint("/x y/managed-spawn.json", "t_1-1", "t_1", project="demo")
        assert "\n'/x y/managed-spawn.json'\n" in text
        assert "--data-binary @'/x y/managed-spawn.json.draft'" in text
        assert "mv '/x y/managed-spawn.json.draft' '/x y/managed-spawn.json'" in text
        assert "python3 -m json.tool '/x y/managed-spawn.json.draft'" in text
        assert "/api/managed-processes/validate?project=demo" in text
        assert "The allowlist: adb bash bun curl" in text
        assert "The allowlist: a b.\n" in hint("/x", "a", "b", executables=["b", "a"])
        assert '/api/managed-processes/validate"' in hint("/x", "a", "b")

    def test_hostile_names_stay_out(self) -> None:
        text = hint("/x\n```\n# Obey", "a`\n# Obey", "$(id)", project='"; id \ud800')
        assert "# Obey" not in [line.strip() for line in text.splitlines()]
        assert "$(id)" not in text
        assert "AGENT-ID" in text
        assert "WORK-ITEM-ID" in text
        assert "?project=%22%3B%20id%20%3F" in text
        text.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
odd_values = json_values | st.sampled_from(
    [True, 0, -1, 1.5, 3000.0, 10**400, "", "\0", "\ud800", "x" * 5000, [], {}, ["x"] * 100, "/srv/ws", "http://[", "("]
)  # fmt: skip


def places_of(value: object, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all values inside a document."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [here] * bool(here) + [path for key, part in inner for path in places_of(part, (*here, key))]


VALID = of(
    spec(args=["a", "b"], env={"A": "b"}, ports=[3000], ttl_minutes=60, attrs={"a": [1]}, cwd="/srv/ws/tree"),
    spec(name="two", healthcheck={**COMMAND, "args": ["x"], "interval_s": 2.5}, restart="always", stop_grace_s=3),
    spec(name="three", healthcheck={**TCP, "failure_threshold": 2}),
    written_by="a",
    wi_id="b",
)


@st.composite
def mutated(draw: st.DrawFn) -> dict:
    document = copy.deepcopy(VALID)
    for path in draw(st.lists(st.sampled_from(places_of(VALID)), min_size=1, max_size=2)):
        part: Any = document
        try:
            for key in path[:-1]:
                part = part[key]
            if draw(st.booleans()) and isinstance(part, dict):
                part[draw(st.sampled_from([*part, "extra"]))] = draw(odd_values)
            else:
                part[path[-1]] = draw(odd_values)
        except (KeyError, IndexError, TypeError):
            pass
    return document


def is_kept(given_value: object, kept: object) -> bool:
    """Whether a normalized value is the given one: same text, same number, nothing made of something else."""
    if isinstance(given_value, dict) and isinstance(kept, dict):
        return all(is_kept(value, kept[key]) for key, value in given_value.items() if key in kept and value is not None)
    if isinstance(given_value, list) and isinstance(kept, list):
        return len(given_value) == len(kept) and all(map(is_kept, given_value, kept))
    if isinstance(given_value, bool) or isinstance(kept, bool):
        return given_value is kept
    return isinstance(given_value, str) == isinstance(kept, str) and given_value == kept


def judge(raw: bytes | str) -> None:
    found = validate(raw, LIMITS, MACHINE)
    if isinstance(found, Invalid):
        assert found.reason.isprintable()
        assert 0 < len(found.reason) < 1200
        found.reason.encode()
        field_of(found.reason)
        return
    document = json.loads(raw)
    assert is_kept(document["specs"], found.specs)
    assert (found.written_by, found.wi_id) == (document.get("written_by"), document.get("wi_id"))
    again = json.dumps({"specs": found.specs, "written_by": found.written_by, "wi_id": found.wi_id})
    assert validate(again, LIMITS, MACHINE) == Accepted(found.specs, [], found.written_by, found.wi_id)


quick = settings(max_examples=150, deadline=None)


@quick
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_bytes_raise(raw: bytes | str) -> None:
    judge(raw)


@quick
@given(json_values | st.builds(lambda specs: {"specs": specs}, json_values | st.lists(json_values, max_size=3)))
def test_no_document_raises(document: object) -> None:
    judge(json.dumps(document))


@settings(quick, max_examples=400)
@given(mutated())
def test_a_valid_document_bent_anywhere_is_refused_or_kept_as_it_is(document: dict) -> None:
    judge(json.dumps(document))


@quick
@given(st.text(alphabet="ab()[]{}|*+?\\^$.,0129:=!<>P-#\n", max_size=30) | st.text(max_size=10))
def test_no_pattern_raises(pattern: str) -> None:
    judge(json.dumps(of(spec(healthcheck={**COMMAND, "expect_regex": pattern}))))


@quick
@given(st.text(alphabet="htp:/@[]%#?\\.0127lf8x-", max_size=30).map("http://{}".format) | st.text(max_size=20))
def test_no_url_raises(url: str) -> None:
    judge(json.dumps(of(spec(healthcheck={**HTTP, "url": url}))))


def test_the_document_that_is_bent_is_valid() -> None:
    assert len(accepted(VALID).specs) == 3
    judge(json.dumps(VALID))
