"""What Ralph loops leave on disk: read, never written.

A pure leaf: it knows no Django and no settings, and whatever lies on disk is treated as hostile.
Formats: spec/projects.md, sections 1 and 2.
"""

from projects.ralph.files import (
    PRD_PLACES,
    Heading,
    ProjectBusy,
    Unreadable,
    find_prd,
    is_project,
    is_slug,
    iteration_number,
    open_directory,
    open_inside,
    parse_pid,
    progress_headings,
    project_lock,
    read_inside,
    slug_for,
)
from projects.ralph.prd import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_STORIES,
    Document,
    PrdError,
    parse_prd,
    story_paths,
)
from projects.ralph.stories import Story, StoryState, current_story

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_STORIES",
    "PRD_PLACES",
    "Document",
    "Heading",
    "PrdError",
    "ProjectBusy",
    "Story",
    "StoryState",
    "Unreadable",
    "current_story",
    "find_prd",
    "is_project",
    "is_slug",
    "iteration_number",
    "open_directory",
    "open_inside",
    "parse_pid",
    "parse_prd",
    "progress_headings",
    "project_lock",
    "read_inside",
    "slug_for",
    "story_paths",
]
