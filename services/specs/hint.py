"""The text that teaches an agent how to declare services."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from services.specs.limits import EXECUTABLES
from services.specs.reasons import shown
from services.specs.sidecars import is_agent_id

# A complete spec file but for `written_by` and `wi_id`; it is valid in a project that is a git work tree.
EXAMPLE: Mapping[str, Any] = MappingProxyType(
    {
        "specs": [
            {
                "name": "web",
                "cmd": "npm",
                "args": ["run", "dev", "--", "--port", "3000"],
                "env": {"NODE_ENV": "development"},
                "ports": [3000],
                "ttl_minutes": 240,
                "attrs": {"url": "http://localhost:3000/", "what": "dev server with hot reload"},
                "healthcheck": {
                    "type": "http",
                    "url": "http://127.0.0.1:3000/",
                    "expect_status": 200,
                    "timeout_s": 60,
                },
                "restart": "on-failure",
                "stop_grace_s": 10,
            }
        ]
    }
)

SCHEMA_HINT = """\
One JSON object in UTF-8, at most 65536 bytes: `{"specs": [1 to 5 specs], "written_by": text, "wi_id": text}`.
One fault refuses the whole file. Numbers are numbers (`"3000"` and `true` are not), null means absent.

| field | what | default |
|---|---|---|
| `name` | kebab-case (`a-z`, `0-9`, `-`), at most 64 characters, unique | required |
| `cmd` | a program on the allowlist by its bare name, at most 200 characters; no shell reads it | required |
| `args` | at most 64 texts of at most 500 characters | `[]` |
| `cwd` | an absolute directory inside the project and a git work tree | the project's root |
| `env` | at most 32 texts of at most 1000 characters; no credentials, no `PATH`, `LD_*`, `GIT_*`, `PYTHON*` | `{}` |
| `ports` | at most 20 different integers from 1024 to 65535: all that it listens on | `[]` |
| `ttl_minutes` | an integer from 1 to 1440; then it is stopped | `240` |
| `attrs` | an object for whoever comes next, at most 2048 bytes as compact JSON | `{}` |
| `healthcheck` | an object, see below | required |
| `restart` | `never`, `on-failure` or `always` | `never` |
| `stop_grace_s` | an integer from 0 to 60: seconds between TERM and KILL | `10` |

Every healthcheck has a `type` and `timeout_s` (over 0, at most 3600: seconds to the first success). Optional are
`interval_s` (over 0, at most 600, default 1: between tries until then), `period_s` (1 to 600, default 30: between
probes afterwards), `failure_threshold` (default 3) and `success_threshold` (default 1). The types:

- `http`: `url` (absolute, of this machine's loopback) and `expect_status` (100 to 599; redirects are not followed).
- `tcp`: `port`; it is healthy when something accepts the connection.
- `command`: `cmd` (at most 1000 characters, its program on the allowlist, none of ``; & | < > $ ( ) ` `` or a line
  end), `args`, `shell` (`true` or `false`, required, changes nothing) and `expect_regex` (1 to 500 characters, RE2:
  no look-around, no back-references), which its output must contain while it exits with 0.

```json
{"type": "tcp", "port": 5432, "timeout_s": 30}
{"type": "command", "cmd": "git status --short", "shell": false, "expect_regex": "^$", "timeout_s": 30}
```
"""


def hint(
    sidecar_path: PurePath | str,
    agent: str,
    wi: str,
    *,
    project: str = "",
    executables: Iterable[str] = EXECUTABLES,
) -> str:
    """Return the contract as markdown for one agent and work item; they, the path and the project may be hostile.

    What is no agent id is replaced by a placeholder. `project` is the slug that the smoke test names,
    `executables` the allowlist in force.
    """
    agent = agent if is_agent_id(agent) else "AGENT-ID"
    wi = wi if is_agent_id(wi) else "WORK-ITEM-ID"
    path = shlex.quote(shown(str(sidecar_path)))
    draft = shlex.quote(shown(f"{sidecar_path}.draft"))
    query = f"?project={quote(project.encode(errors='replace'), safe='')}" if project else ""
    example = json.dumps({**EXAMPLE, "written_by": agent, "wi_id": wi}, indent=2)
    return f"""\
# Leave a service running

A process that you start yourself is not kept when you end. To leave a dev server, a database or an emulator
running, declare it in a file; Andon starts it and watches over it.

## Where to write

This file (its path is in `$ANDON_SIDECAR` too). It must be a regular file, no link:

```
{path}
```

`written_by` must be `{agent}` and `wi_id` must be `{wi}`.

## A complete example

```json
{example}
```

## What is allowed

{SCHEMA_HINT}
The allowlist: {" ".join(sorted(executables))}.

## What Andon does

1. Reads the file once, after your process has ended and your work was accepted, and deletes it.
2. Refuses the whole file for its first fault; your work item then shows the exact reason and is not tried again.
3. Starts the services in the order of the file, each in a session of its own, without a shell, with no other
   environment than `PATH HOME LANG LC_* TMPDIR TZ` and its `env`. Should one not start, the others are stopped too.
4. Probes them until the first success. One that ends or misses its `timeout_s` is killed, and its last lines are kept.
5. Probes on, restarts as `restart` says, and stops each one when its `ttl_minutes` are over.
6. Tells the next agents of the project which services are healthy, with their `ports` and `attrs`.

## Smoke test, before you write

Run `cmd` with its `args` in its `cwd` yourself, do what the healthcheck will do, and stop it again: its ports must be
free when you end. Then write a draft and let it be checked, which changes nothing:

```sh
python3 -m json.tool {draft} > /dev/null && echo "is JSON"
curl -sS -X POST -H "Authorization: Bearer $ANDON_TOKEN" -H "Content-Type: application/json" \\
  --data-binary @{draft} "$ANDON_URL/api/managed-processes/validate{query}"
```

`{{"ok": true, …}}` means accepted; otherwise `detail` is the reason. `warnings` lists keys that were ignored. Then put
it in its place, whole:

```sh
mv {draft} {path}
```

## How to verify

Afterwards anyone with a token sees its `state`, and its log:

```sh
curl -sS -H "Authorization: Bearer $ANDON_TOKEN" "$ANDON_URL/api/managed-processes/by-name/web{query}"
curl -sS -H "Authorization: Bearer $ANDON_TOKEN" "$ANDON_URL/api/managed-processes/log/web{query}"
```
"""
