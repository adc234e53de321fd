// A log that is followed. Chunks wait in a buffer and reach the page once a frame; page and buffer
// both keep only the newest lines, so a fast writer can't fill the browser.
(() => {
  "use strict";
  const KEEP = 2000;
  const words = document.getElementById("words")?.dataset ?? {};

  function follow(log) {
    const view = log.querySelector(".log-lines");
    const more = log.querySelector(".log-more");
    const state = log.querySelector(".log-state");
    const say = (word) => { if (state) state.textContent = words[word]; };
    let offset = Number(log.dataset.offset) || 0;
    let waiting = []; // [{html, text, offset, next_offset, lines}]
    let count = 0;    // lines waiting
    let skipped = 0;  // lines dropped before they were shown
    let following = true;
    let frame = 0;
    let whole = true; // the last line shown is a whole one

    // Server html is escaped text with spans that are balanced within each line; here each line gets an
    // element, and, where the bytes add up, its address: #b<offset of its first byte>.
    const bytes = new TextEncoder();
    function lines({ html, text, offset: at, next_offset: next }) {
      const texts = text.split("\n");
      const htmls = html.split("\n");
      const sizes = texts.map((line, i) => bytes.encode(line).length + (i < texts.length - 1));
      const known = htmls.length === texts.length && sizes.reduce((sum, n) => sum + n, at) === next;
      if (!htmls.at(-1)) htmls.pop();
      return htmls.map((inner, i) => {
        const line = document.createElement("span");
        line.className = "line";
        line.innerHTML = inner;
        if (known) line.id = `b${at}`;
        at += sizes[i];
        return line;
      });
    }
    const bottom = () => { view.scrollTop = view.scrollHeight; };
    function pill() {
      more.hidden = following || !count;
      more.textContent = words.newLines.replace("%s", count + skipped);
    }
    function paint() {
      frame = 0;
      if (!following) { pill(); return; }
      const fresh = [];
      if (skipped) {
        const gap = document.createElement("span");
        gap.className = "line log-gap";
        gap.textContent = words.skipped.replace("%s", skipped);
        fresh.push(gap);
        whole = true;
      }
      for (const chunk of waiting) {
        const next = lines(chunk);
        // The writer had not ended its line when we last read.
        if (!whole && !chunk.truncated && next.length) (fresh.at(-1) ?? view.lastElementChild)?.append(...next.shift().childNodes);
        fresh.push(...next);
        whole = chunk.text.endsWith("\n");
      }
      fresh.splice(0, fresh.length - KEEP);
      waiting = [];
      count = skipped = 0;
      view.append(...fresh);
      const extra = view.children.length - KEEP;
      if (extra > 0) {
        const range = document.createRange();
        range.setStart(view, 0);
        range.setEndBefore(view.children[extra]);
        range.deleteContents();
      }
      pill();
      bottom();
    }
    const later = () => { frame ||= requestAnimationFrame(paint); };

    view.addEventListener("scroll", () => {
      const end = view.scrollHeight - view.scrollTop - view.clientHeight < 24;
      if (end === following) return;
      following = end;
      if (following && count) later();
      else pill();
    }, { passive: true });
    more.addEventListener("click", () => {
      following = true;
      paint();
      view.focus({ preventScroll: true });
    });

    // A line's address: click it, or take that of the first one in sight.
    function point(line) {
      view.querySelector(".is-target")?.classList.remove("is-target");
      line.classList.add("is-target");
      history.replaceState(null, "", `#${line.id}`);
    }
    view.addEventListener("click", (event) => {
      const line = event.target.closest(".line[id]");
      if (line && getSelection().isCollapsed) point(line);
    });
    const link = log.querySelector(".log-link");
    link?.addEventListener("click", () => {
      const top = view.getBoundingClientRect().top;
      const line = view.querySelector(".line.is-target")
        ?? [...view.querySelectorAll(".line[id]")].find((one) => one.getBoundingClientRect().bottom > top + 1);
      if (line) point(line);
      link.dataset.copy = location.href;
    });

    let stream, retry, tries = 0, ended = false;
    function connect() {
      const url = new URL(log.dataset.logUrl, location.href);
      url.searchParams.set("offset", offset);
      stream = new EventSource(url);
      stream.onopen = () => { tries = 0; say("following"); };
      stream.addEventListener("log", (event) => {
        const chunk = JSON.parse(event.data);
        offset = chunk.next_offset;
        log.dataset.offset = offset;
        const n = (chunk.text.match(/\n/g) ?? []).length || 1;
        waiting.push({ ...chunk, lines: n });
        count += n;
        while (waiting.length > 1 && count - waiting[0].lines >= KEEP) {
          const { lines: gone } = waiting.shift();
          count -= gone;
          skipped += gone;
        }
        later();
      });
      stream.addEventListener("heartbeat", () => {});
      stream.addEventListener("done", () => { stream.close(); say("ended"); ended = true; });
      stream.onerror = () => {
        stream.close();
        say("waiting");
        clearTimeout(retry);
        retry = setTimeout(connect, Math.min(10000, 500 * 2 ** tries++) * (0.75 + Math.random() / 2));
      };
    }
    // What ended may be started again: then its log goes on.
    document.addEventListener("andon:event", ({ detail: { subject, kind } }) => {
      if (ended && subject === log.dataset.logSubject && kind.endsWith(".starting")) { ended = false; connect(); }
    });
    const shown = { html: view.innerHTML, text: view.textContent, offset: Number(log.dataset.start), next_offset: offset };
    whole = shown.text === "" || shown.text.endsWith("\n");
    view.replaceChildren(...(shown.text ? lines(shown) : []).slice(-KEEP));
    const target = location.hash.startsWith("#b") && document.getElementById(location.hash.slice(1));
    if (target && view.contains(target)) { following = false; target.classList.add("is-target"); target.scrollIntoView(); }
    else if (log.dataset.logUrl) bottom();
    if (log.dataset.logUrl) connect();
  }
  for (const log of document.querySelectorAll(".log")) follow(log);
})();
