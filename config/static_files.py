"""Static files under hashed names once `up` has collected them, under their own before."""

from typing import Any

from whitenoise.storage import CompressedManifestStaticFilesStorage


class CollectedOrPlain(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # whitenoise ships no types
    """Answers with the plain name for what was not collected, so that tests and lone commands need no collecting."""

    manifest_strict = False

    def hashed_name(self, name: str, content: Any = None, filename: str | None = None) -> str:
        return name if content is None else str(super().hashed_name(name, content, filename))
