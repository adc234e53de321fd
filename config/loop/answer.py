"""Read what an agent answered: its promise, its bill, and whether it only has to wait."""

import os
import re
from dataclasses import dataclass

from projects import usage

PROMISE = "<promise>COMPLETE</promise>"
MAX_OUTPUT = 16 * 1024 * 1024
MAX_COMPLAINT = 2000

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """`usage` is None when the agent sent no bill; `warning` is a sentence or ""."""

    usage: usage.Usage | None
    failed: bool
    is_quota: bool
    promised: bool
    warning: str = ""


def read_output(log: int, start: int) -> bytes:
    """Return what was written to the open log from `start` on; of over 16 MiB the last whole lines."""
    size = os.fstat(log).st_size
    begin = max(start, size - MAX_OUTPUT)
    output = bytearray()
    while chunk := os.pread(log, min(size - begin - len(output), MAX_OUTPUT), begin + len(output)):
        output += chunk
    return bytes(output) if begin == start else bytes(output).partition(b"\n")[2]


def judge(output: bytes, *, prompt: bytes, exit_code: int, was_cut: bool) -> Answer:
    """Judge one answer; `was_cut`: we ended the agent ourselves, so nothing that it said counts for it."""
    envelope = usage.result_envelope(output)
    bill, warning = None, ""
    if envelope is not None:
        try:
            bill = usage.parse_record(envelope)
        except ValueError as reason:
            warning = f"the agent's bill is not counted: {reason}"
    is_error = envelope is not None and envelope.get("is_error") is True
    failed = was_cut or is_error or exit_code != 0
    if envelope is not None:
        complaint = usage.error_text(envelope) if is_error else ""
        result = envelope.get("result")
    else:
        complaint = output[-MAX_COMPLAINT:].decode("utf-8", "replace")
        result = None
    promised = has_promise(_without(output, prompt)) or (isinstance(result, str) and has_promise(result))
    return Answer(
        usage=bill,
        failed=failed,
        is_quota=failed and not was_cut and usage.is_quota(complaint),
        promised=promised and not failed,
        warning=warning,
    )


def has_promise(text: str) -> bool:
    """Say whether the promise has a line of its own: not in a sentence, a quotation or Markdown code."""
    fence = ""
    for line in _COLOUR.sub("", text).split("\n"):
        found = _FENCE.fullmatch(line.rstrip())
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        elif not fence and line.strip() == PROMISE and not line.startswith(("    ", "\t")):
            return True
    return False


def _without(output: bytes, prompt: bytes) -> str:
    """Return the output less the prompt, which some agents repeat and which may spell out the promise."""
    repeated = prompt.strip()
    return (output.replace(repeated, b"") if repeated else output).decode("utf-8", "replace")
