"""Ask git, with every guard up: nothing of the caller's environment or the repository's hooks gets a say."""

import os
import re
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NAME = "Andon"
EMAIL = "andon@localhost"
STDOUT_BYTES = 64 * 1024 * 1024
STDERR_BYTES = 1024 * 1024
_READ_AT_ONCE = 64 * 1024

_OPTIONS = (
    *("--no-optional-locks", "--no-pager"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "commit.gpgSign=false"),
    *("-c", "tag.gpgSign=false"),
    # A clean-up or a submodule's checkout that git starts by itself would outlive the deadline.
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "submodule.recurse=false"),
)
_ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    # A partial clone would fetch what is missing, by whatever program its remote names.
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "false",
    "SSH_ASKPASS": "false",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    "GIT_EDITOR": ":",
    "GIT_SEQUENCE_EDITOR": ":",
    "GIT_MERGE_AUTOEDIT": "no",
    "GIT_PAGER": "cat",
    "GIT_AUTHOR_NAME": NAME,
    "GIT_AUTHOR_EMAIL": EMAIL,
    "GIT_COMMITTER_NAME": NAME,
    "GIT_COMMITTER_EMAIL": EMAIL,
}


class GitError(Exception):
    """git said no: `command` (its arguments), `returncode`, `stderr`, and what it printed before (`stdout`).

    `returncode` is None when it was not started, ran out of time or printed too much, negative when a signal killed it.
    """

    def __init__(self, args: Sequence[str], returncode: int | None, stderr: str, stdout: bytes = b"") -> None:
        super().__init__(tuple(args), returncode, stderr)
        self.command = tuple(args)
        self.returncode = returncode
        self.stderr = stderr
        self.stdout = stdout

    def __str__(self) -> str:
        if self.returncode is None:
            ended = "did not end"
        elif self.returncode < 0:
            ended = f"was killed by signal {-self.returncode}"
        else:
            ended = f"ended with {self.returncode}"
        return f"git {self.command[0] if self.command else ''} {ended}: {self.stderr.strip()[:500]}"


def run(
    args: Sequence[str],
    cwd: Path,
    *,
    timeout_s: float = 30,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,  # noqa: A002 - subprocess names it so
    keep: Sequence[int] = (),
    limit: int = STDOUT_BYTES,
) -> bytes:
    """Run `git ARGS` and return its standard output.

    `cwd` is the top of the repository; an outer one is never found. `env` is added last, so it can name an
    index or an author. git inherits the descriptors `keep`: a lock on one lasts until git has ended, even when
    its parent was killed. At the deadline, and once it has printed more than `limit` bytes, or STDERR_BYTES of
    complaints, the whole process group is killed. Raises GitError.
    """
    command = ["git", *_OPTIONS, *args]
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(cwd, env or {}),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=keep,
        )
    except (OSError, ValueError) as error:
        raise GitError(args, None, f"git could not be started: {error}") from None
    with process:
        try:
            out, err = _talk(process, input or b"", {"stdout": limit, "stderr": STDERR_BYTES}, timeout_s)
        except subprocess.TimeoutExpired:
            raise GitError(args, None, f"timed out after {timeout_s:g} s") from None
        except _TooMuch as much:
            raise GitError(args, None, f"printed more than {much} bytes") from None
        finally:
            _end(process)
    if process.returncode:
        raise GitError(args, process.returncode, err.decode("utf-8", "replace"), out)
    return out


def version(cwd: Path) -> tuple[int, int]:
    """Return git's version as `(major, minor)`; (0, 0) when it tells nothing like one. Raises GitError."""
    found = re.search(rb"([0-9]{1,4})\.([0-9]{1,4})", run(["version"], cwd))
    return (int(found[1]), int(found[2])) if found else (0, 0)


class _TooMuch(Exception):
    """It prints more than this many bytes."""


def _talk(
    process: "subprocess.Popen[bytes]", said: bytes, limits: Mapping[str, int], timeout_s: float
) -> tuple[bytes, bytes]:
    """Hand `said` over, read all there is, and wait for the end. Raises subprocess.TimeoutExpired and _TooMuch."""
    deadline = time.monotonic() + timeout_s
    heard = {name: bytearray() for name in limits}
    left = memoryview(said)
    with selectors.DefaultSelector() as selector:
        for name in limits:
            selector.register(getattr(process, name), selectors.EVENT_READ, name)
        if process.stdin:
            selector.register(process.stdin, selectors.EVENT_WRITE, "")
        while selector.get_map():
            ready = selector.select(max(0, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _ in ready:
                if key.data:
                    chunk = os.read(key.fd, _READ_AT_ONCE)
                    heard[key.data] += chunk
                    if len(heard[key.data]) > limits[key.data]:
                        raise _TooMuch(limits[key.data])
                    is_over = not chunk
                else:
                    left = left[_write(key.fd, left) :]
                    is_over = not left
                if is_over:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
    process.wait(max(0.001, deadline - time.monotonic()))
    return bytes(heard["stdout"]), bytes(heard["stderr"])


def _write(pipe: int, left: memoryview) -> int:
    """Write what a ready pipe takes without waiting, and return how much; all of it when nobody reads any more."""
    try:
        return os.write(pipe, left[: select.PIPE_BUF])
    except BrokenPipeError:
        return len(left)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the group; the leader is not reaped before, so its number is still its own."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment(cwd: Path, extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ceiling = {"GIT_CEILING_DIRECTORIES": str(cwd.resolve().parent)}
    return {**inherited, **_ENVIRONMENT, **ceiling, **extra}
