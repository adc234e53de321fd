// Live pages. Events arrive over one socket (or by polling); each says what changed, and the fragments
// that show it are fetched again and morphed in. The cursor is the truth: nothing is lost in between.
(() => {
  "use strict";
  const { body, documentElement: root } = document;
  const words = document.getElementById("words")?.dataset ?? {};
  const badge = document.getElementById("live-badge");
  const wait = (s) => AbortSignal.timeout(s * 1000);

  // Ages: the wording of the server's `age` filter.
  let skew = 0; // events are never from the future: a browser's late clock is corrected
  function age(then) {
    const ms = Date.now() + skew - then;
    const s = Math.floor(Math.abs(ms) / 1000);
    if (ms < 2000 && ms > -5000) return words.now;
    const [n, unit] = s < 60 ? [1, "s"] : s < 3600 ? [60, "min"] : s < 86400 ? [3600, "h"] : [86400, "d"];
    return words[ms > 0 ? "ago" : "in"].replace("%s", `${Math.floor(s / n)} ${unit}`);
  }
  function ages() {
    for (const time of document.querySelectorAll("time[data-age]")) {
      const text = age(Date.parse(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // Fragments
  const states = new Map(); // id -> {etag, timer, flying, again, dirty, rest, at}
  const live = () => [...body.querySelectorAll("[data-live][id]")];
  const starts = (prefixes, text) => prefixes.split(/\s+/).some((one) => one && (one === "*" || text.startsWith(one)));
  const matches = (el, { subject, kind }) =>
    starts(el.dataset.live, subject) && starts(el.dataset.liveKinds ?? "*", kind);
  function state(id) {
    if (!states.has(id)) states.set(id, { rest: 0, at: Date.now() });
    return states.get(id);
  }
  const changed = (field) =>
    field.type === "checkbox" || field.type === "radio" ? field.checked !== field.defaultChecked
      : field.options ? field.selectedIndex !== Math.max(0, [...field.options].findIndex((o) => o.defaultSelected))
        : field.value !== field.defaultValue;
  function busy(el) {
    const at = document.activeElement;
    return el.querySelector(".sortable-chosen, [data-dragging]") || !el.checkVisibility()
      || (el.contains(at) && at.matches("input, textarea, select") && changed(at));
  }
  function soon(el, ms = 150) {
    const f = state(el.id);
    if (f.flying) f.again = true;
    else f.timer ??= setTimeout(refresh, Math.max(ms, f.rest), el.id);
  }
  async function refresh(id) {
    const f = state(id);
    const el = document.getElementById(id);
    f.timer = null;
    if (!el) return;
    f.dirty = document.hidden;
    if (f.dirty) return; // fetched when the page is looked at again
    if (busy(el)) { soon(el, 1000); return; }
    const began = Date.now();
    const url = el.dataset.liveUrl || location.href;
    if (f.url !== url) f.etag = null;
    f.url = url;
    f.flying = true;
    f.again = false;
    f.at = began;
    try {
      const headers = { "HX-Request": "true", "HX-Target": id };
      if (f.etag) headers["If-None-Match"] = f.etag;
      const answer = await fetch(url, { headers, cache: "no-store", signal: wait(20) });
      if (answer.status === 401 || new URL(answer.url).pathname === "/login/") bar(true);
      else if (answer.ok) {
        const html = await answer.text();
        // Somebody may have begun to type, or changed the filter, while it was under way.
        if (busy(el) || (el.dataset.liveUrl || location.href) !== url) f.again = true;
        else { f.etag = answer.headers.get("ETag"); morph(el, html); }
      } else if (answer.status >= 500) f.dirty = true;
    } catch {
      f.dirty = true;
    }
    f.flying = false;
    f.rest = Math.min(1000, 4 * (Date.now() - began)); // a slow server is asked less often
    if (f.again) soon(document.getElementById(id) ?? el, 150);
  }
  function again() {
    for (const el of live()) if (state(el.id).dirty) soon(el, 0);
  }

  // Morphing: only what differs is touched, so focus, selection, scroll and open menus stay.
  function looks(row) {
    const copy = row.cloneNode(true);
    for (const time of copy.querySelectorAll("time")) time.textContent = time.dateTime;
    return copy.textContent.replace(/\s+/g, " ");
  }
  function morph(el, html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const next = holder.content.querySelector(`#${CSS.escape(el.id)}`);
    if (!next) return;
    const fresh = [];
    Idiomorph.morph(el, next, {
      morphStyle: "outerHTML",
      ignoreActiveValue: true,
      callbacks: {
        beforeNodeMorphed(old, now) {
          if (old.nodeType !== 1) return true;
          if (old.matches("time[data-age]") && old.dateTime === now.dateTime) return false;
          if (old.matches("input, textarea, select") && changed(old)) return false;
          if (old.matches("[data-row]") && looks(old) !== looks(now)) fresh.push(old);
          return true;
        },
        beforeAttributeUpdated: (name, node) => !(name === "open" && node.matches("details, dialog")),
        afterNodeAdded(node) {
          if (node.nodeType === 1 && node.matches("[data-row]")) fresh.push(node);
        },
      },
    });
    ages();
    for (const row of fresh) {
      row.classList.add("changed");
      setTimeout(() => row.classList.remove("changed"), 1000);
    }
    const now = document.getElementById(el.id);
    if (!now) return;
    window.htmx?.process(now);
    now.dispatchEvent(new CustomEvent("andon:morphed", { bubbles: true }));
  }

  // Frames
  let last = Date.now();
  function apply({ events = [], cursor, reset }) {
    last = Date.now();
    const all = live();
    if (reset) for (const el of all) soon(el);
    for (const event of events) {
      if (Number(event.id) <= Number(body.dataset.cursor)) continue; // seen by the other way
      skew = Math.max(skew, Date.parse(event.at) - last || 0);
      for (const el of all) if (matches(el, event)) soon(el);
      document.dispatchEvent(new CustomEvent("andon:event", { detail: event }));
    }
    if (reset || cursor > Number(body.dataset.cursor)) body.dataset.cursor = cursor;
  }

  // The badge, and what can't be done without a server
  const bar = (out) => {
    const el = document.getElementById("signin-bar");
    if (!el || el.hidden === !out) return;
    el.hidden = !out;
    el.querySelector("a").href = `/login/?next=${encodeURIComponent(location.pathname + location.search)}`;
  };
  function show(next) {
    if (root.dataset.live === next) return;
    root.dataset.live = next;
    if (badge) {
      badge.dataset.state = next;
      badge.querySelector("strong").textContent = words[next === "live" ? "online" : next];
    }
    needs();
    tick();
    if (next !== "offline") again();
  }
  function needs() {
    const off = root.dataset.live === "offline";
    for (const el of document.querySelectorAll("[data-needs-server]")) {
      if (!("disabled" in el)) el.setAttribute("aria-disabled", off);
      else if (off && !el.disabled) { el.disabled = true; el.dataset.off = ""; }
      else if (!off && "off" in el.dataset) { el.disabled = false; delete el.dataset.off; }
    }
  }
  function tick() {
    if (document.hidden) return;
    ages();
    if (!root.dataset.live) return;
    const since = badge?.querySelector(".live-age");
    if (since) since.textContent = words.updated.replace("%s", age(last + skew));
    if (root.dataset.live === "offline") return;
    for (const el of body.querySelectorAll("[data-live-every][id]")) {
      if (Date.now() - state(el.id).at > 1000 * el.dataset.liveEvery) soon(el);
    }
  }

  // Socket, with polling beside it while it is away
  let socket, retry, polling, down, tries = 0;
  const open = () => socket?.readyState === WebSocket.OPEN;
  function connect() {
    clearTimeout(retry);
    if (socket?.readyState === WebSocket.CONNECTING) return;
    let opened = false;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const mine = new WebSocket(`${scheme}://${location.host}/ws/events?since=${body.dataset.cursor}`);
    socket = mine;
    mine.onopen = () => {
      opened = true;
      last = Date.now();
      clearTimeout(down);
      clearTimeout(polling);
      down = null;
      bar(false);
      show("live");
    };
    mine.onmessage = (message) => {
      tries = 0;
      apply(JSON.parse(message.data));
    };
    mine.onclose = (event) => {
      if (socket !== mine) return;
      down ??= setTimeout(poll, 5000);
      retry = setTimeout(connect, Math.min(10000, 500 * 2 ** tries++) * (0.75 + Math.random() / 2));
      if (!opened || event.code === 4401) ask();
    };
  }
  async function ask() {
    try {
      const { status } = await fetch("/api/me", { cache: "no-store", signal: wait(10) });
      if (open()) return;
      bar(status === 401);
      if (status >= 500) show("offline");
      else if (root.dataset.live === "offline") show("polling");
    } catch {
      if (!open()) show("offline");
    }
  }
  async function poll() {
    clearTimeout(polling);
    if (open()) return;
    try {
      const answer = await fetch(`/api/events?since=${body.dataset.cursor}`, { cache: "no-store", signal: wait(10) });
      if (open()) return;
      bar(answer.status === 401);
      show(answer.status < 500 ? "polling" : "offline");
      if (answer.ok) apply(await answer.json());
    } catch {
      if (!open()) show("offline");
    }
    clearTimeout(polling);
    if (!open()) polling = setTimeout(poll, document.hidden ? 60000 : 5000);
  }

  // A page of somebody who isn't signed in has no cursor: only its ages move.
  setInterval(tick, 1000);
  ages();
  document.addEventListener("htmx:afterSwap", () => { ages(); needs(); });
  document.addEventListener("andon:refresh", (event) => soon(event.target, 0));
  document.addEventListener("click", (event) => {
    if (event.target.closest("a[data-needs-server][aria-disabled=true]")) event.preventDefault();
  }, true);
  if (!("cursor" in body.dataset)) return;
  connect();
  setInterval(() => {
    if (root.dataset.live !== "offline") again();
    // The server speaks at least every 20 s: silence is a dead connection.
    if (open() && Date.now() - last > 45000) {
      const { onclose } = socket;
      socket.close();
      onclose({});
      socket = null;
    }
  }, 5000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    tick();
    again();
    if (!open() && down) { connect(); poll(); }
  });
  window.addEventListener("online", () => { if (!open() && down) connect(); });
})();
