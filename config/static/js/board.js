// The board's shortcuts: dragging, keys, selecting, and forms that leave the page where it is. Each posts
// the same form as the page that works without any of this.
(() => {
  "use strict";
  const { body } = document;
  const verb = document.getElementById("verb");
  const bulk = document.getElementById("bulk");
  const csrf = () => verb?.elements.csrfmiddlewaretoken?.value ?? "";
  const cards = (root = document) => [...root.querySelectorAll(".task")];
  const column = (name) => document.getElementById(`column-${name}`);
  const fresh = (el) => el?.dispatchEvent(new CustomEvent("andon:refresh", { bubbles: true }));

  // Post as a form would; the answer is a toast, with an undo or the reason why not.
  async function post(url, fields) {
    const data = fields instanceof FormData ? fields : new FormData();
    if (data !== fields) for (const [name, value] of Object.entries(fields)) data.append(name, value);
    data.set("csrfmiddlewaretoken", csrf());
    let answer = null;
    try {
      answer = await fetch(url, { method: "POST", body: data, headers: { "HX-Request": "true" } });
      toast(await answer.text());
    } catch { unreached(); }
    return answer?.ok ?? false;
  }
  function unreached() {
    document.dispatchEvent(new CustomEvent("andon:toast", { detail: { text: document.getElementById("words").dataset.failed } }));
  }
  function toast(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const node = holder.content.querySelector(".toast");
    if (node) document.dispatchEvent(new CustomEvent("andon:toast", { detail: { node } }));
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".toast button[data-undo], dialog button[data-undo]");
    if (!button || !verb) return;
    event.preventDefault();
    button.disabled = true;
    const row = button.closest(".toast") ?? button;
    await post("/kanban/undo/", { token: button.dataset.undo || button.value });
    row.remove();
  });

  // Dragging. What ends a worker, or needs a reason, asks first: the card goes back until it is answered.
  const opening = (card, to) => {
    const link = card.querySelector(".task-move");
    if (!link) return;
    const url = new URL(to === "blocked" ? `/kanban/tasks/${card.dataset.task}/block/` : link.href, location.href);
    if (to !== "blocked") url.searchParams.set("to", to);
    const before = link.getAttribute("href");
    link.href = url.pathname + url.search;
    link.click();
    link.setAttribute("href", before);
  };
  function sort(list) {
    if (list.dataset.sorts || !verb || !window.Sortable) return;
    list.dataset.sorts = "";
    let from, next;
    window.Sortable.create(list, {
      group: "board",
      sort: false,
      draggable: ".task",
      filter: "input, .task-move, button, summary",
      preventOnFilter: false,
      animation: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 120,
      delay: 180,
      delayOnTouchOnly: true,
      onStart({ item }) { from = item.parentElement; next = item.nextElementSibling; },
      onMove({ to }) {
        for (const each of document.querySelectorAll(".column.is-target")) each.classList.remove("is-target");
        to.closest(".column")?.classList.add("is-target");
      },
      async onEnd({ item, to }) {
        for (const each of document.querySelectorAll(".column.is-target")) each.classList.remove("is-target");
        const [was, now] = [list.dataset.list, to.dataset.list];
        if (was === now) return;
        const back = () => from.insertBefore(item, next?.parentElement === from ? next : null);
        if (now !== "running" && (was === "running" || now === "blocked")) { back(); opening(item, now); return; }
        if (!await post(`/kanban/tasks/${item.dataset.task}/move/`, { to: now, seen: item.dataset.seen })) back();
        fresh(column(was));
        fresh(column(now));
      },
    });
  }
  const sortAll = () => { for (const list of document.querySelectorAll(".tasks[data-list]")) sort(list); };

  // Selecting: the bar is there while something is selected.
  const chosen = () => [...document.querySelectorAll(".task input[name=ids]:checked")];
  function count() {
    if (!bulk) return;
    const n = chosen().length;
    bulk.classList.toggle("is-idle", !n);
    const words = bulk.querySelector(".bulk-count");
    words.dataset.text ??= words.textContent;
    words.textContent = `${words.dataset.text} ${n}`;
  }
  document.addEventListener("change", ({ target }) => { if (target.name === "ids") count(); });
  bulk?.querySelector("[data-unselect]")?.addEventListener("click", () => {
    for (const box of chosen()) box.checked = false;
    count();
  });
  if (bulk) bulk.querySelector("[data-unselect]").hidden = false;
  bulk?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const data = new FormData(bulk, event.submitter);
    const holder = document.createElement("template");
    try {
      const answer = await fetch(bulk.action, { method: "POST", body: data, headers: { "HX-Target": "confirm" } });
      holder.innerHTML = await answer.text();
    } catch { unreached(); return; } // What was selected stays so.
    const sheet = holder.content.querySelector("#confirm");
    if (!sheet) { location.assign("/kanban/"); return; }
    document.dispatchEvent(new CustomEvent("andon:sheet", { detail: { sheet } }));
    for (const box of chosen()) box.checked = false;
    count();
    fresh(document.getElementById("board"));
  });

  // A column's "+": one title after another, without leaving.
  for (const form of document.querySelectorAll("form[data-quick]")) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const title = form.elements.title;
      const data = new FormData(form);
      if (!await post(form.action, data)) return;
      title.value = "";
      title.focus();
      fresh(column(form.elements.column.value));
    });
  }

  // Keys. The card under the focus is the one meant.
  const focused = () => document.activeElement?.closest?.(".task");
  const go = (card) => { card?.querySelector(".task-title").focus(); card?.scrollIntoView({ block: "nearest", inline: "nearest" }); };
  function step(key) {
    const here = focused();
    if (!here) { go(cards()[0]); return; }
    const columns = [...document.querySelectorAll(".column")].filter((each) => each.querySelector(".task"));
    const at = columns.indexOf(here.closest(".column"));
    const mine = cards(columns[at]);
    const row = mine.indexOf(here);
    if (key === "j") go(mine[row + 1]);
    else if (key === "k") go(mine[row - 1]);
    else {
      const other = columns[at + (key === "l" ? 1 : -1)];
      if (other) go(cards(other)[Math.min(row, cards(other).length - 1)]);
    }
  }
  const same = { ArrowDown: "j", ArrowUp: "k", ArrowLeft: "h", ArrowRight: "l" };
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (body.dataset.shortcuts === "off" || event.metaKey || event.ctrlKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, [contenteditable], dialog")) return;
    const key = same[event.key] ?? event.key;
    const after = going > Date.now() - 1500; // "g k" goes to the board
    going = key === "g" ? Date.now() : 0;
    if (after) return;
    const card = focused();
    if ("hjkl".includes(key) && (card || !same[event.key])) step(key);
    else if (key === "m" && card) card.querySelector(".task-move")?.click();
    else if (key === "x" && card) { card.querySelector("input[name=ids]")?.click(); }
    else if (key === "n") document.querySelector("a[data-new]")?.click();
    else if (key === "?") document.getElementById("board-keys").showModal();
    else return;
    event.preventDefault();
  }, true);

  // Tabs of a narrow screen: which column is in sight, and how many it holds.
  const tabs = () => [...document.querySelectorAll(".tabs [data-tab]")];
  function sight() {
    const row = document.querySelector(".columns-of-board");
    if (!row) return;
    const left = row.getBoundingClientRect().left;
    const near = [...row.children].sort((a, b) => Math.abs(a.getBoundingClientRect().left - left) - Math.abs(b.getBoundingClientRect().left - left))[0];
    for (const tab of tabs()) {
      if (tab.dataset.tab === near?.dataset.column) tab.setAttribute("aria-current", "true");
      else tab.removeAttribute("aria-current");
    }
  }
  document.addEventListener("scroll", ({ target }) => { if (target.matches?.(".columns-of-board")) sight(); }, true);
  document.addEventListener("andon:morphed", () => {
    for (const tab of tabs()) {
      const number = column(tab.dataset.tab)?.dataset.count;
      if (number !== undefined) tab.querySelector(".count").textContent = number;
    }
    sortAll();
    count();
    sight();
  });
  document.addEventListener("click", (event) => {
    const tab = event.target.closest(".tabs [data-tab]");
    if (!tab) return;
    event.preventDefault();
    column(tab.dataset.tab)?.scrollIntoView({ block: "nearest", inline: "start" });
  });
  sortAll();
  count();
  sight();
})();
