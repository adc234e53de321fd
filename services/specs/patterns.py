"""Patterns that others wrote: RE2 runs them, for Python's `re` holds the interpreter and cannot be interrupted."""

import re
import threading
import warnings

# The only way to a pattern's tree; `re.compile` of 500 hostile characters takes 0.4 s, this under 1 ms.
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import re2

from services.specs.reasons import Refused, shown
from services.specs.values import is_storable

_UNBOUNDED = {_parser.MAX_REPEAT, _parser.MIN_REPEAT, _parser.POSSESSIVE_REPEAT}
_LOOK_AROUND = {_parser.ASSERT, _parser.ASSERT_NOT}
_one_at_a_time = threading.Lock()


def compile_pattern(pattern: str) -> Any:
    """Compile a pattern for RE2, which says nothing on stderr. Raises re2.error for what it cannot do."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def check(pattern: str) -> None:
    """Refuse (`Refused`) what `re` cannot compile as `-invalid`; as `-unsafe` nested unbounded quantifiers and
    what RE2 cannot do.
    """
    if not is_storable(pattern):
        raise Refused("healthcheck-expect-regex-invalid (NUL or a lone surrogate)")
    try:
        is_nested = _is_nested(_parse(pattern))
    except RecursionError:
        raise Refused("healthcheck-expect-regex-invalid (nested too deep)") from None
    except (re.error, ValueError, OverflowError) as error:
        raise Refused(f"healthcheck-expect-regex-invalid ({shown(str(error))})") from None
    if is_nested:
        raise Refused("healthcheck-expect-regex-unsafe")
    try:
        compile_pattern(pattern)
    except re2.error:
        raise Refused("healthcheck-expect-regex-unsafe") from None


def _parse(pattern: str) -> Any:
    # `[[a]` makes a FutureWarning, and filters belong to the whole process.
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _parser.parse(pattern)


def _is_nested(tree: Any) -> bool:
    """Tell whether an unbounded quantifier stands within another. Raises re.error for a look-behind of no fixed
    width, which the parser lets pass.
    """
    nested = False
    left = [(tree, False)]
    while left:
        part, inside = left.pop()
        if isinstance(part, _parser.SubPattern):
            for code, argument in part:
                unbounded = code in _UNBOUNDED and argument[1] == _parser.MAXREPEAT
                nested = nested or (unbounded and inside)
                if code in _LOOK_AROUND and argument[0] < 0:
                    _check_width(argument[1])
                left.append((argument, inside or unbounded))
        elif isinstance(part, tuple | list):
            left.extend((inner, inside) for inner in part)
    return nested


def _check_width(behind: Any) -> None:
    shortest, longest = behind.getwidth()
    if shortest != longest:
        raise re.error("look-behind requires fixed-width pattern")
