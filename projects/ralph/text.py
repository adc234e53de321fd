"""Make texts that agents wrote storable, and collect the sentences about what was odd."""

import re

_UNSTORABLE = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]")


def clean(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, storable in PostgreSQL and encodable in UTF-8.

    NUL, the other C0 control characters except newline and tab, and lone surrogates are removed.
    """
    return _UNSTORABLE.sub("", text)[:limit]


def one_line(text: str, limit: int) -> str:
    """Return `clean` text with every run of white space made one space: for ids, titles and labels."""
    return " ".join(_UNSTORABLE.sub("", text).split())[:limit].rstrip()


def storable(value: object) -> object:
    """Return parsed JSON with U+FFFD where a NUL or a lone surrogate stood, in keys too.

    Neither jsonb nor UTF-8 can hold those two; everything else stays as it was. Recurses: the caller has
    checked the depth.
    """
    match value:
        case str():
            return re.sub(r"[\x00\ud800-\udfff]", "\ufffd", value)
        case list():
            return [storable(item) for item in value]
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case _:
            return value


class Warnings:
    """Sentences for a person; the first 50 are kept, the rest are only counted."""

    LIMIT = 50

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._more = 0

    def add(self, sentence: str) -> None:
        """Keep the sentence, or count it when there are enough."""
        if len(self._kept) < self.LIMIT:
            self._kept.append(sentence)
        else:
            self._more += 1

    def sentences(self) -> tuple[str, ...]:
        """Return what was kept, and "and N more" at the end when something was not."""
        return (*self._kept, f"and {self._more} more") if self._more else tuple(self._kept)
