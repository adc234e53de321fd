#!/usr/bin/env python3
"""How a worker tells the board about its task: the program that ANDON_CLI names.

A program of its own: standard library only, Python 3.8 or later, whatever the agent's own language is.
The task, the attempt and the token come from ANDON_URL, ANDON_TOKEN, ANDON_TASK and ANDON_RUN in the environment.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

OK, USAGE, REFUSED, UNREACHABLE, SUPERSEDED = 0, 2, 3, 4, 5
KINDS = ("needs_input", "capability", "dependency", "transient")

# Seconds for one try, and for all of them together.
TIMEOUT_S = 10.0
PATIENCE_S = 30.0
# Bytes: of a text that is sent, of an answer that is printed, of a refusal that is read for its reason.
MOST_SENT = 1024 * 1024
MOST_PRINTED = 4 * 1024 * 1024
MOST_REASON = 64 * 1024

_PASSING = {502, 503, 504}
_DICE = random.SystemRandom()

EXAMPLES = """\
examples:
  "$ANDON_CLI" heartbeat --note "tests are running" --cost 0.42 --tokens 18000
  "$ANDON_CLI" comment "The old API has no paging; I add it."
  "$ANDON_CLI" comment - < notes.md
  "$ANDON_CLI" block "Which of the two databases?" --kind needs_input
  "$ANDON_CLI" review "Please look at the migration."
  "$ANDON_CLI" complete --summary "One line." --result "What was done, in report.md."
  "$ANDON_CLI" complete --result - < result.md
  "$ANDON_CLI" context

A text that begins with - is read as an option: write --note="- so", or hand it over on standard input.

exit codes:
  0  the board took it
  2  a wrong command line or environment
  3  the board refused it; the reason is printed
  4  the board was not reached, though it was tried for 30 seconds
  5  this attempt is over: stop working
"""


class Failed(Exception):
    """It did not work: `code` is the exit code, the text a sentence for whoever reads the output."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Board:
    """The board as the environment names it. Raises Failed when that does not."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        values = {name: environ.get(name, "") for name in ("ANDON_URL", "ANDON_TOKEN", "ANDON_TASK")}
        for name, text in values.items():
            if not text:
                raise Failed(USAGE, f"{name} is not set: this program works inside of a worker of Andon")
            # An error message of the library would show them.
            if not (text.isascii() and text.isprintable() and " " not in text):
                raise Failed(USAGE, f"{name} holds a character that does not belong there")
        self.token = values["ANDON_TOKEN"]
        self.task = values["ANDON_TASK"]
        self.attempt = environ.get("ANDON_RUN", "") or self.task
        self.project = environ.get("ANDON_PROJECT", "")
        self.patience = _seconds(environ.get("ANDON_CLI_PATIENCE", ""))
        try:
            parts = urlsplit(values["ANDON_URL"])
            self.host, self.port = parts.hostname or "", parts.port
        except ValueError:
            self.host, self.port = "", None
        if not self.host or parts.scheme not in {"http", "https"}:
            raise Failed(USAGE, "ANDON_URL is not an address that begins with http:// or https://")
        self.is_secure = parts.scheme == "https"
        self.base = parts.path.rstrip("/")

    def post(self, verb: str, body: Mapping[str, Any]) -> None:
        """Send a verb of the task. It may arrive twice when its answer was lost, and never less than once."""
        self._ask("POST", self._path(verb), json.dumps(body).encode("ascii"))

    def context(self) -> str:
        return self._ask("GET", self._path("context"))

    def services(self) -> str:
        if not self.project:
            return ""
        project = quote(self.project, safe="", errors="replace")
        return self._ask("GET", f"{self.base}/api/managed-processes/live-block?project={project}")

    def _path(self, verb: str) -> str:
        return f"{self.base}/api/kanban/tasks/{quote(self.task, safe='')}/{verb}"

    def _ask(self, method: str, path: str, body: bytes | None = None) -> str:
        """Return the text of a good answer to a GET; try again while the board is away. Raises Failed."""
        end = time.monotonic() + self.patience
        timeout, pause = TIMEOUT_S, 0.25
        while True:
            try:
                status, content = self._try(method, path, body, timeout)
                why = f"it answered {status}"
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                status, content = 0, b""
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if status and status not in _PASSING:
                return self._read(status, content)
            wait = pause * _DICE.uniform(0.5, 1)
            if time.monotonic() + wait >= end:
                raise Failed(UNREACHABLE, f"the board was not reached: {self.inert(why)}")
            time.sleep(wait)
            pause = min(4.0, pause * 2)
            timeout = min(TIMEOUT_S, max(1.0, end - time.monotonic()))

    def _try(self, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        """Ask once, past every proxy and never further than to where ANDON_URL leads."""
        if self.is_secure:
            context = ssl.create_default_context()
            line: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout, context=context
            )
        else:
            line = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Accept": "text/markdown, application/json",
            # On the loopback of a board that is served by HTTPS alone, it would send us there.
            "X-Forwarded-Proto": "https",
            "Connection": "close",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            if answer.status >= 300:
                return answer.status, _read(answer, MOST_REASON, timeout)
            if body is not None:
                return answer.status, b""
            content = _read(answer, MOST_PRINTED + 1, timeout)
        finally:
            line.close()
        if len(content) > MOST_PRINTED:
            raise Failed(UNREACHABLE, f"the answer has more than {MOST_PRINTED} bytes: that is not the board")
        return answer.status, content

    def _read(self, status: int, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        if 200 <= status < 300:
            return text
        code, detail = _refusal(text)
        if status == 401 or (status == 409 and code == "superseded"):
            raise Failed(SUPERSEDED, f"this attempt ({self.inert(self.attempt)}) is over: stop working")
        if 400 <= status < 500:
            raise Failed(REFUSED, self.inert(detail) or f"the board refused it with {status}")
        if 300 <= status < 400:
            raise Failed(UNREACHABLE, "the board wants us elsewhere, which is not followed: check ANDON_URL")
        raise Failed(UNREACHABLE, f"the board failed with {status}")

    def inert(self, text: str) -> str:
        """Return a text on one line, without the token and without anything that moves a terminal's cursor."""
        line = " ".join(text.replace(self.token, "***").split())[:2000]
        return "".join(sign if sign.isprintable() else "?" for sign in line)


def _seconds(text: str) -> float:
    try:
        patience = float(text) if text else PATIENCE_S
    except ValueError:
        patience = math.nan
    if not 0 <= patience <= 3600:
        raise Failed(USAGE, "ANDON_CLI_PATIENCE is not a number of seconds from 0 to 3600")
    return patience


def _read(answer: http.client.HTTPResponse, most: int, timeout: float) -> bytes:
    """Read an answer; one that trickles in is given up like one that does not come."""
    end = time.monotonic() + timeout
    content = b""
    while len(content) < most:
        # At most what one read of the socket brings.
        chunk = answer.read1(most - len(content))
        if not chunk:
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
            break
        content += chunk
        if time.monotonic() > end:
            raise TimeoutError("timed out")
    return content


def _refusal(text: str) -> tuple[str, str]:
    """Return the code and the sentence of an error answer, "" for what it does not tell."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(told, dict):
        return "", ""
    detail = told.get("detail", "")
    return str(told.get("error", "")), detail if isinstance(detail, str) else json.dumps(detail)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failed(USAGE, f"{message} (see --help)")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="andon_cli.py",
        description="Tell the board about your task. End with one of block, review and complete.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def verb(name: str, about: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=about, description=about, allow_abbrev=False)

    def spent(command: argparse.ArgumentParser) -> None:
        command.add_argument("--cost", type=_cost, metavar="USD", help="what this attempt has cost so far")
        command.add_argument("--tokens", type=_count, metavar="N", help="the tokens that it has used so far")

    heartbeat = verb("heartbeat", "say that you are still at work")
    heartbeat.add_argument("--note", default="", metavar="TEXT", help="what you are doing")
    spent(heartbeat)
    verb("comment", "leave a comment on the task").add_argument("text", metavar="TEXT|-", help="- = standard input")
    block = verb("block", "stop, because you cannot go on alone")
    block.add_argument("reason", metavar="REASON", help="what has to happen first (- = standard input)")
    block.add_argument("--kind", choices=KINDS, default=KINDS[0], help="who can lift it (default: %(default)s)")
    review = verb("review", "stop, and ask a person to look at the work")
    review.add_argument("summary", nargs="?", default="", metavar="SUMMARY", help="- = standard input")
    complete = verb("complete", "say that the task is done")
    complete.add_argument("--result", default="", metavar="TEXT|-", help="what came of it (- = standard input)")
    complete.add_argument("--summary", default="", metavar="TEXT", help="the same in one line")
    spent(complete)
    verb("context", "print what the board tells you of the task, as it is now")
    verb("services", "print the healthy services of the project")
    return top


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not 0 <= cost < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a sum of dollars")
    return cost


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(text)


def _text(given: str) -> str:
    """Return a text of the command line, or standard input for `-`, as valid Unicode."""
    content = sys.stdin.buffer.read(MOST_SENT + 1) if given == "-" else given.encode("utf-8", "surrogateescape")
    if len(content) > MOST_SENT:
        raise Failed(USAGE, f"the text has more than {MOST_SENT} bytes; put it into a file and name that")
    return content.decode("utf-8", "replace")


def _needed(given: str, what: str) -> str:
    text = _text(given)
    if not text.strip():
        raise Failed(USAGE, f"{what} is empty")
    return text


def _bill(told: argparse.Namespace) -> dict[str, Any]:
    given = {"cost_usd": told.cost, "tokens": told.tokens}
    return {name: number for name, number in given.items() if number is not None}


def carry_out(told: argparse.Namespace, board: Board) -> str:
    """Do what the command line asks for and return what is to be printed. Raises Failed."""
    if told.verb == "context":
        return board.context()
    if told.verb == "services":
        return board.services()
    if told.verb == "heartbeat":
        note = _text(told.note)
        board.post("heartbeat", {**({"note": note} if note else {}), **_bill(told)})
    elif told.verb == "comment":
        board.post("comments", {"body": _needed(told.text, "the comment")})
    elif told.verb == "block":
        board.post("block", {"reason": _needed(told.reason, "the reason"), "kind": told.kind})
    elif told.verb == "review":
        board.post("review", {"summary": _text(told.summary)})
    else:
        result, summary = _text(told.result), _text(told.summary)
        board.post("complete", {"result": result, "summary": summary, **_bill(told)})
    return "ok: the board knows; end now\n" if told.verb in {"block", "review", "complete"} else "ok\n"


def main(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Carry out a command line and return the exit code; what there is to say is printed."""
    try:
        told = parser().parse_args(list(words))
        board = Board(environ)
        said = carry_out(told, board).replace(board.token, "***")
    except Failed as failure:
        _print(sys.stderr, f"error: {failure}\n")
        return failure.code
    _print(sys.stdout, said)
    return OK


def _print(stream: Any, text: str) -> None:
    """Print in UTF-8, whatever the locale says; a reader that has gone is no failure of the board."""
    try:
        stream.buffer.write(text.encode("utf-8", "replace"))
        stream.flush()
    except BrokenPipeError:
        # Or the interpreter would complain while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
