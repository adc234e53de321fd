"""Markdown of people and agents as safe HTML: no raw HTML, no images, links that give nothing away.

With ANDON_BOARD_RENDER_MARKDOWN off every text is shown as it was written.
"""

import nh3
from django.conf import settings
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

from projects.templatetags.andon import visible

# Beyond this a text is shown as it was written.
MOST_RENDERED = 65_536
# Headings stand below the page's own.
DEEPER_BY = 2
_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")


def html(text: str) -> SafeString:
    """Return a text's Markdown as HTML; signs that cannot be seen are made visible first."""
    shown = visible(text.replace("\r\n", "\n").expandtabs(4))
    if len(shown) > MOST_RENDERED or (shown and not settings.ANDON_BOARD.render_markdown):
        return mark_safe(nh3.clean(f"<pre>{nh3.clean_text(shown)}</pre>", tags={"pre"}))  # noqa: S308
    tokens = _MARKDOWN.parse(shown)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + DEEPER_BY)}"
    made = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    clean = nh3.clean(
        made,
        tags=_TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
    )
    return mark_safe(clean)  # noqa: S308 (what nh3 lets through)
