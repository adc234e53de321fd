"""A tiny agent: `agent.py DOLLARS [GATE]` waits until a file named GATE is there, then sends a bill. Standard library.

It enters itself in `agents.ledger` first, one line: pid, its session.
"""

import json
import os
import sys
import time
import uuid
from pathlib import Path

sys.stdin.read()
with Path("agents.ledger").open("a", encoding="ascii") as ledger:
    ledger.write(f"{os.getpid()} {os.getsid(0)}\n")
dollars, *gates = sys.argv[1:]
while not all(Path(gate).exists() for gate in gates):
    time.sleep(0.02)
bill = {"type": "result", "subtype": "success", "is_error": False, "result": "worked a little", "num_turns": 1}
sys.stdout.write(json.dumps({**bill, "session_id": str(uuid.uuid4()), "total_cost_usd": float(dollars)}) + "\n")
