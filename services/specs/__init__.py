"""What an agent may declare: validation of spec files, and safe reading of the files that bring them. A pure leaf.

Formats, bounds and reasons: spec/services.md, sections 1 and 2.
"""

from services.specs.context import Context, Found, System, trusted_dirs
from services.specs.fields import field_of
from services.specs.healthchecks import split_command
from services.specs.hint import EXAMPLE, SCHEMA_HINT, hint
from services.specs.limits import EXECUTABLES, MAX_BYTES, Limits
from services.specs.patterns import compile_pattern
from services.specs.sidecars import Sidecar, Unreadable, delete_sidecar, is_agent_id, list_sidecars, read_sidecar
from services.specs.validation import Accepted, Invalid, check_sidecar, validate, validate_document

__all__ = [
    "EXAMPLE",
    "EXECUTABLES",
    "MAX_BYTES",
    "SCHEMA_HINT",
    "Accepted",
    "Context",
    "Found",
    "Invalid",
    "Limits",
    "Sidecar",
    "System",
    "Unreadable",
    "check_sidecar",
    "compile_pattern",
    "delete_sidecar",
    "field_of",
    "hint",
    "is_agent_id",
    "list_sidecars",
    "read_sidecar",
    "split_command",
    "trusted_dirs",
    "validate",
    "validate_document",
]
