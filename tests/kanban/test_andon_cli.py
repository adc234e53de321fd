"""The program that every worker reports with: real processes against a real server on the loopback."""

import ast
import json
import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from kanban import andon_cli
from tests.kanban.loopback import CLI, TOKEN, Answer, serving
from tests.running import free_port

pytestmark = pytest.mark.pure

TASK = "/api/kanban/tasks/t_1a2b3c4d"


@pytest.fixture
def board():
    with serving() as board:
        yield board


def error(code, detail="No.", status=409):
    return Answer(status, json.dumps({"error": code, "detail": detail}).encode())


class TestVerbs:
    @pytest.mark.parametrize(
        ("words", "verb", "body"),
        [
            (["heartbeat"], "heartbeat", {}),
            (["heartbeat", "--note", "täsks"], "heartbeat", {"note": "täsks"}),
            (["heartbeat", "--cost", "0.5", "--tokens", "12"], "heartbeat", {"cost_usd": 0.5, "tokens": 12}),
            (["heartbeat", "--cost", "0", "--tokens", "0"], "heartbeat", {"cost_usd": 0, "tokens": 0}),
            (["comment", "Two\nlines"], "comments", {"body": "Two\nlines"}),
            (["comment", "--", "--dashes"], "comments", {"body": "--dashes"}),
            (["block", "Which?"], "block", {"reason": "Which?", "kind": "needs_input"}),
            (["block", "Net", "--kind", "transient"], "block", {"reason": "Net", "kind": "transient"}),
            (["review"], "review", {"summary": ""}),
            (["review", "Look."], "review", {"summary": "Look."}),
            (["complete"], "complete", {"result": "", "summary": ""}),
            (
                ["complete", "--result", "r", "--summary", "s", "--cost", "1e-3", "--tokens", "7"],
                "complete",
                {"result": "r", "summary": "s", "cost_usd": 0.001, "tokens": 7},
            ),
        ],
    )
    def test_sends(self, board, words, verb, body):
        done = board.run(*words)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"ok")
        [heard] = board.heard
        assert (heard.method, heard.path) == ("POST", f"{TASK}/{verb}")
        assert heard.json == body
        assert heard.headers["Content-Type"] == "application/json"
        assert heard.headers["Authorization"] == f"Bearer {TOKEN}"
        assert heard.headers["X-Forwarded-Proto"] == "https"

    @pytest.mark.parametrize(
        ("words", "field"),
        [(["comment", "-"], "body"), (["complete", "--result", "-"], "result"), (["block", "-"], "reason")],
    )
    def test_reads_standard_input(self, board, words, field):
        assert board.run(*words, input="Größe\n# x\n".encode()).returncode == 0
        assert board.heard[0].json[field] == "Größe\n# x\n"

    def test_bytes_that_are_no_text(self, board):
        assert board.run("comment", "-", input=b"a\xff\x00b").returncode == 0
        assert subprocess.run([CLI, "comment", b"a\xffb"], env=board.environ(), check=False).returncode == 0
        assert [each.json["body"] for each in board.heard] == ["a\ufffd\x00b", "a\ufffdb"]

    def test_context(self, board):
        board.by_verb["context"] = Answer(body="# Täsk\n".encode())
        done = board.run("context", LC_ALL="C", PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stdout, done.stderr) == (0, "# Täsk\n".encode(), b"")
        assert (board.heard[0].method, board.heard[0].path) == ("GET", f"{TASK}/context")

    def test_services(self, board):
        board.script = [Answer(body=b"- name: web\n")]
        assert board.run("services", ANDON_PROJECT="a&b/c").stdout == b"- name: web\n"
        assert board.heard[0].path == "/api/managed-processes/live-block?project=a%26b%2Fc"

    def test_services_without_a_project(self, board):
        done = board.run("services")
        assert (done.returncode, done.stdout, board.heard) == (0, b"", [])

    def test_address_may_have_a_path(self, board):
        board.url += "/andon/"
        assert board.run("heartbeat").returncode == 0
        assert board.heard[0].path == f"/andon{TASK}/heartbeat"

    def test_is_a_program(self, board):
        assert CLI.stat().st_mode & stat.S_IXUSR
        assert CLI.read_text().startswith("#!/usr/bin/env python3\n")
        assert subprocess.run([CLI, "heartbeat"], env=board.environ(), check=False).returncode == 0

    def test_reader_that_has_gone(self, board):
        board.by_verb["context"] = Answer(body=b"x" * 1_000_000)
        ours, theirs = os.pipe()
        os.close(ours)
        done = subprocess.run(
            [CLI, "context"], env=board.environ(), stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=30
        )
        os.close(theirs)
        assert (done.returncode, done.stderr) == (0, b"")


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 429])
    def test_are_printed(self, board, status):
        board.script = [error("not-so", "The reason.", status)]
        done = board.run("complete")
        assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"error: The reason.\n")
        assert len(board.heard) == 1

    def test_list_of_faults(self, board):
        board.script = [Answer(422, b'{"error": "invalid-request", "detail": [{"loc": ["body"], "msg": "no"}]}')]
        assert b'error: [{"loc": ["body"], "msg": "no"}]' in board.run("heartbeat").stderr

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b'{"detail": ""}', b"[" * 60_000])
    def test_without_a_reason(self, board, body):
        board.script = [Answer(400, body)]
        done = board.run("heartbeat")
        assert (done.returncode, done.stderr) == (3, b"error: the board refused it with 400\n")

    @pytest.mark.parametrize("answer", [error("superseded"), error("unauthenticated", status=401), Answer(401, b"<")])
    def test_attempt_is_over(self, board, answer):
        board.script = [answer]
        done = board.run("heartbeat")
        assert (done.returncode, done.stderr) == (5, b"error: this attempt (t_1a2b3c4d/3) is over: stop working\n")

    def test_reason_moves_no_cursor_and_is_bounded(self, board):
        board.script = [error("x", "a\x1b[2J\n\u202eb" + "c" * 9000)]
        printed = board.run("heartbeat").stderr.decode()
        assert printed.startswith("error: a?[2J ?bccc")
        assert len(printed) < 2100

    def test_board_has_failed(self, board):
        board.script = [Answer(500, b"{}")]
        done = board.run("heartbeat")
        assert (done.returncode, done.stderr, len(board.heard)) == (4, b"error: the board failed with 500\n", 1)


class TestPatience:
    @pytest.mark.parametrize("status", [502, 503, 504, 0])
    def test_tries_again(self, board, status):
        board.script = [Answer(status), Answer(status)]
        assert board.run("heartbeat", "--note", "x").returncode == 0
        assert [each.json for each in board.heard] == [{"note": "x"}] * 3

    def test_board_that_comes_back(self, board):
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, CLI, "heartbeat"],
            env=board.environ(ANDON_URL=f"http://127.0.0.1:{port}"),
            stdout=subprocess.PIPE,
        )
        time.sleep(0.6)
        with socket.create_server(("127.0.0.1", port)) as server:
            line, _ = server.accept()
            with line:
                line.recv(65536)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert process.communicate(timeout=20)[0] == b"ok\n"
        assert process.returncode == 0

    def test_is_not_endless(self, board):
        start = time.monotonic()
        done = board.run("heartbeat", ANDON_URL=f"http://127.0.0.1:{free_port()}", ANDON_CLI_PATIENCE="1")
        assert (done.returncode, done.stderr) == (4, b"error: the board was not reached: Connection refused\n")
        assert time.monotonic() - start < 8

    def test_may_be_none(self, board):
        board.script = [Answer(503)]
        done = board.run("heartbeat", ANDON_CLI_PATIENCE="0")
        assert (done.returncode, done.stderr) == (4, b"error: the board was not reached: it answered 503\n")
        assert len(board.heard) == 1

    @pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e9"])
    def test_is_a_number(self, board, text):
        done = board.run("heartbeat", ANDON_CLI_PATIENCE=text)
        assert done.returncode == 2
        assert b"ANDON_CLI_PATIENCE" in done.stderr

    def test_answer_that_does_not_come(self, board, monkeypatch):
        board.by_verb["heartbeat"] = Answer(pause_s=20, headers={"Content-Length": "2"}, status=400)
        assert self.impatient(board, monkeypatch) == 4

    def test_answer_that_trickles_in(self, board, monkeypatch, capsysbinary):
        board.by_verb["heartbeat"] = Answer(400, b"x" * 300, pieces=[b"x"] * 300, pause_s=0.05)
        assert self.impatient(board, monkeypatch) == 4
        assert capsysbinary.readouterr().err == b"error: the board was not reached: timed out\n"

    @pytest.mark.parametrize("headers", [{"Content-Length": "99"}, {"Transfer-Encoding": "chunked"}])
    def test_answer_that_breaks_off(self, board, headers):
        board.by_verb["context"] = Answer(body=b"20\r\nhalf", headers=headers)
        done = board.run("context", ANDON_CLI_PATIENCE="0")
        assert (done.returncode, done.stdout) == (4, b"")
        assert b"IncompleteRead" in done.stderr

    @staticmethod
    def impatient(board, monkeypatch):
        monkeypatch.setattr(andon_cli, "TIMEOUT_S", 0.5)
        start = time.monotonic()
        code = andon_cli.main(["heartbeat"], board.environ(ANDON_CLI_PATIENCE="0"))
        assert time.monotonic() - start < 5
        return code


class TestHostileAnswers:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirect_is_not_followed(self, board, status):
        with serving() as other:
            board.script = [Answer(status, b"", {"Location": f"{other.url}/x"})]
            done = board.run("heartbeat")
            assert (done.returncode, other.heard) == (4, [])
        assert b"which is not followed" in done.stderr
        assert len(board.heard) == 1

    def test_proxy_is_not_asked(self, board):
        with serving() as proxy:
            more = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), proxy.url)
            assert board.run("heartbeat", **more).returncode == 0
            assert proxy.heard == []

    def test_huge_context(self, board):
        board.by_verb["context"] = Answer(body=b"x" * (andon_cli.MOST_PRINTED + 1))
        done = board.run("context")
        assert (done.returncode, done.stdout) == (4, b"")
        assert b"more than 4194304 bytes" in done.stderr
        board.by_verb["context"] = Answer(body=b"x" * andon_cli.MOST_PRINTED)
        assert len(board.run("context").stdout) == andon_cli.MOST_PRINTED

    @pytest.mark.parametrize(("status", "code"), [(200, 0), (400, 3)])
    def test_huge_answer_to_a_verb(self, board, status, code):
        board.script = [Answer(status, b"[" * 30_000_000)]
        assert board.run("heartbeat").returncode == code

    def test_no_http(self, board):
        with socket.create_server(("127.0.0.1", 0)) as server:
            process = subprocess.Popen(
                [sys.executable, CLI, "heartbeat"],
                env=board.environ(ANDON_URL=f"http://127.0.0.1:{server.getsockname()[1]}", ANDON_CLI_PATIENCE="0"),
                stderr=subprocess.PIPE,
            )
            line, _ = server.accept()
            with line:
                line.sendall(b"220 mail \x1b[2J ready\r\n")
                said = process.communicate(timeout=20)[1]
        assert process.returncode == 4
        assert b"\x1b" not in said

    def test_token_is_never_printed(self, board):
        board.by_verb["context"] = Answer(body=f"token {TOKEN}!".encode())
        board.by_verb["block"] = error("x", f"You sent {TOKEN}.")
        outputs = [board.run(*words) for words in (["context"], ["block", "x"], ["heartbeat", "--bad"], ["--help"])]
        outputs.append(board.run("heartbeat", ANDON_TOKEN=f"{TOKEN}\nX-Header: 1"))
        outputs.append(board.run("heartbeat", ANDON_TOKEN=f"{TOKEN}ä"))
        assert [each.returncode for each in outputs] == [0, 3, 2, 0, 2, 2]
        assert outputs[0].stdout == b"token ***!"
        assert not any(TOKEN.encode() in each.stdout + each.stderr for each in outputs)


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["dance"],
            ["heartbeat", "extra"],
            ["heart"],
            ["heartbeat", "--no", "x"],
            ["comment"],
            ["comment", " \n"],
            ["comment", ""],
            ["block"],
            ["block", ""],
            ["block", "x", "--kind", "breaker"],
            ["heartbeat", "--cost", "-1"],
            ["heartbeat", "--cost", "nan"],
            ["heartbeat", "--cost", "inf"],
            ["heartbeat", "--cost", "1 USD"],
            ["heartbeat", "--tokens", "1.5"],
            ["heartbeat", "--tokens", "-1"],
            ["heartbeat", "--tokens", "²"],
            ["heartbeat", "--tokens", "9" * 16],
        ],
    )
    def test_wrong_command_line(self, board, words, capsysbinary):
        assert andon_cli.main(words, board.environ()) == 2
        printed = capsysbinary.readouterr()
        assert printed.out == b""
        assert printed.err.startswith(b"error: ")
        assert board.heard == []

    def test_text_that_is_too_long(self, board):
        done = board.run("comment", "-", input=b"x" * (andon_cli.MOST_SENT + 1))
        assert (done.returncode, board.heard) == (2, [])
        assert b"more than 1048576 bytes" in done.stderr

    @pytest.mark.parametrize("name", ["ANDON_URL", "ANDON_TOKEN", "ANDON_TASK"])
    def test_environment_is_missing(self, board, name):
        done = board.run("heartbeat", **{name: ""})
        assert (done.returncode, board.heard) == (2, [])
        assert f"{name} is not set".encode() in done.stderr

    @pytest.mark.parametrize(
        "url", ["ftp://x", "x", "http://", "http://[::1", "http://a:b", "http://a b", "http://x:99999"]
    )
    def test_address_is_wrong(self, board, url):
        done = board.run("heartbeat", ANDON_URL=url)
        assert done.returncode == 2
        assert b"ANDON_URL" in done.stderr

    def test_task_id_stays_one_part_of_the_path(self, board):
        assert board.run("heartbeat", ANDON_TASK="../a?b#c").returncode == 0
        assert board.heard[0].path == "/api/kanban/tasks/..%2Fa%3Fb%23c/heartbeat"

    def test_host_that_is_none(self, board, capsysbinary):
        for host in ("x" * 70, "a..b"):
            environ = board.environ(ANDON_URL=f"http://{host}.invalid/", ANDON_CLI_PATIENCE="0")
            assert andon_cli.main(["heartbeat"], environ) == 4

    @pytest.mark.parametrize("words", [["--help"], *([verb, "-h"] for verb in ("heartbeat", "block", "complete"))])
    def test_help_needs_no_environment(self, words):
        done = subprocess.run([CLI, *words], env={"PATH": os.environ["PATH"]}, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"usage: andon_cli.py" in done.stdout
        if words == ["--help"]:
            assert b'"$ANDON_CLI" complete --result - < result.md' in done.stdout
            assert b"exit codes:" in done.stdout


def test_https_is_checked(board, capsysbinary):
    """A server without a certificate is not talked to."""
    environ = board.environ(ANDON_URL=board.url.replace("http:", "https:"), ANDON_CLI_PATIENCE="0")
    assert andon_cli.main(["heartbeat"], environ) == 4
    assert board.heard == []


@pytest.mark.parametrize("name", ["andon_cli.py", "demo_worker.py"])
def test_stands_alone(name):
    """Nothing but the standard library, and no syntax that Python 3.8 lacks."""
    source = CLI.with_name(name).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {module.partition(".")[0] for module in imported} <= {*sys.stdlib_module_names}
    assert "subprocess" not in imported


def test_nothing_beside_it_hides_the_standard_library():
    """Python searches the folder of a program first."""
    beside = {path.stem for path in CLI.parent.iterdir()}
    assert beside & {*sys.stdlib_module_names} == set()
