"""What a page weighs and how long it takes, as the browser itself tells (spec: ui.md, budgets)."""

from dataclasses import dataclass

from playwright.sync_api import Page

# (gzipped bytes of a first view, bytes of JavaScript among them), of the board and of any other page.
BOARD = (120_000, 45_000)
OTHERS = (70_000, 25_000)
REQUESTS = 12
CLS = 0.05
TTFB_BOARD_MS, TTFB_MS, LCP_MS = 150, 80, 800
SHIFTS = """async () => {
  const seen = {lcp: 0, cls: 0};
  const look = (type, act) => new PerformanceObserver((list) => list.getEntries().forEach(act))
    .observe({type, buffered: true});
  look("largest-contentful-paint", (entry) => { seen.lcp = entry.startTime; });
  look("layout-shift", (entry) => { if (!entry.hadRecentInput) seen.cls += entry.value; });
  await new Promise((done) => setTimeout(done, 250));
  return {...seen, ttfb: performance.getEntriesByType("navigation")[0].responseStart};
}"""


@dataclass(frozen=True, slots=True)
class Weight:
    """`bytes` and `scripts` as they came over the wire, in bytes; times in milliseconds."""

    bytes: int
    scripts: int
    requests: int
    ttfb: float
    lcp: float
    cls: float

    def excess(self, limits: tuple[int, int]) -> list[str]:
        """Return what is over the budget; times and shifts are not judged, they are the machine's too."""
        told = {
            f"{self.bytes} bytes, {limits[0]} may be": self.bytes > limits[0],
            f"{self.scripts} bytes of JavaScript, {limits[1]} may be": self.scripts > limits[1],
            f"{self.requests} requests, {REQUESTS} may be": self.requests > REQUESTS,
        }
        return [text for text, is_over in told.items() if is_over]


def weigh(page: Page, path: str, *, timed: bool = True) -> Weight:
    """Open a page as if for the first time; not `timed`, without the times, which is sooner done."""
    session = page.context.new_cdp_session(page)
    kinds: dict[str, str] = {}
    sizes: dict[str, int] = {}
    session.on("Network.requestWillBeSent", lambda told: kinds.update({told["requestId"]: told.get("type", "")}))
    session.on("Network.loadingFinished", lambda told: sizes.update({told["requestId"]: told["encodedDataLength"]}))
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.goto(path, wait_until="load")
    seen = page.evaluate(SHIFTS) if timed else dict.fromkeys(("ttfb", "lcp", "cls"), 0.0)
    session.send("Network.setCacheDisabled", {"cacheDisabled": False})
    session.detach()
    # What the page asks for once it lives is not part of opening it.
    first = {
        key: kind for key, kind in kinds.items() if kind not in {"Fetch", "XHR", "EventSource", "WebSocket", "Ping"}
    }
    return Weight(
        bytes=int(sum(sizes.get(key, 0) for key in first)),
        scripts=int(sum(sizes.get(key, 0) for key, kind in first.items() if kind == "Script")),
        requests=len(first),
        ttfb=seen["ttfb"],
        lcp=seen["lcp"],
        cls=seen["cls"],
    )


def limits_of(path: str) -> tuple[int, int]:
    return BOARD if path.partition("?")[0] == "/kanban/" else OTHERS
