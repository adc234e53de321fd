// What a page does beyond being read. Each part only shortens a way that also works without it.
(() => {
  "use strict";
  const { body, documentElement: root } = document;
  const words = document.getElementById("words")?.dataset ?? {};
  const on = (type, act) => document.addEventListener(type, act);

  // On a narrow screen the navigation scrolls: where one is, is in sight.
  const here = document.querySelector(".nav [aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - (here.parentElement.clientWidth - here.offsetWidth) / 2;

  // Theme and density show at once; the form saves them.
  on("change", ({ target: { form, name, value } }) => {
    if (form && "preview" in form.dataset && (name === "theme" || name === "density")) root.dataset[name] = value;
  });

  // Filters: the list follows the form, and the address follows too.
  let typing;
  on("input", ({ target: { form } }) => {
    const list = form && document.getElementById(form.dataset.filter);
    if (!list) return;
    clearTimeout(typing);
    typing = setTimeout(() => {
      const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      const url = location.pathname + (query.size ? `?${query}` : "");
      history.replaceState(null, "", url);
      list.dataset.liveUrl = url;
      list.dispatchEvent(new CustomEvent("andon:refresh", { bubbles: true }));
    }, 250);
  });

  // A question opens over the page instead of being a page.
  async function ask(link) {
    let sheet;
    try {
      const answer = await fetch(link.href, { headers: { "HX-Request": "true", "HX-Target": "confirm" } });
      const holder = document.createElement("template");
      holder.innerHTML = await answer.text();
      sheet = holder.content.querySelector("#confirm");
    } catch { /* the link itself tells what is wrong */ }
    if (!sheet) { location.assign(link.href); return; }
    show(sheet);
  }
  function show(sheet) {
    const dialog = document.createElement("dialog");
    dialog.className = "dialog";
    dialog.setAttribute("aria-labelledby", "confirm-title");
    sheet.classList.remove("sheet-page");
    dialog.append(sheet);
    dialog.addEventListener("close", () => dialog.remove());
    body.append(dialog);
    dialog.showModal();
    dialog.querySelector("[data-cancel]")?.focus();
  }

  // Toasts leave by themselves, unless somebody is at them.
  const toasts = document.getElementById("toasts");
  function toast(text, node) {
    if (!toasts) return;
    if (!node) {
      node = document.createElement("div");
      node.className = "toast";
      node.append(document.createElement("p"), document.createElement("button"));
      node.firstChild.textContent = text;
      node.lastChild.textContent = "✕";
      node.lastChild.ariaLabel = words.dismiss;
      node.lastChild.dataset.dismiss = "";
    }
    toasts.append(node); // moved in after loading, so that it is read out
    const leave = () => (node.matches(":hover, :focus-within") ? setTimeout(leave, 2000) : node.remove());
    setTimeout(leave, 10000); // as long as what it tells of can be undone
  }
  for (const node of [...toasts?.children ?? []]) toast("", node);
  for (const node of document.querySelectorAll("[data-dismiss]")) node.hidden = false;
  on("andon:toast", ({ detail }) => toast(detail.text, detail.node));
  on("andon:sheet", ({ detail }) => show(detail.sheet));
  for (const type of ["htmx:sendError", "htmx:responseError"]) on(type, () => toast(words.failed));

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not a secure origin
      const field = Object.assign(document.createElement("textarea"), { value: text });
      body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    toast(words.copied);
  }
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;

  on("click", (event) => {
    const { target } = event;
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
    if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const at = (what) => target.closest(what);
    if (at("a[data-dialog]")) { event.preventDefault(); ask(at("a[data-dialog]")); }
    else if (at("dialog [data-cancel]")) { event.preventDefault(); at("dialog").close(); }
    else if (at("[data-dismiss]")) at(".toast").remove();
    else if (at("[data-copy]")) copy(at("[data-copy]").dataset.copy);
    else if (at("[data-keys]")) document.getElementById("keys").showModal();
  });

  // Keys: never while writing, and they can be switched off.
  const places = { h: "/", p: "/projects/", k: "/kanban/", s: "/services/", e: "/events/" };
  const seen = (what) => [...document.querySelectorAll(what)].find((field) => field.checkVisibility());
  function find(own) {
    const field = (own && seen("main [data-search]")) || seen("[data-find]");
    if (field) { field.focus(); field.select(); } else location.assign("/search/");
  }
  let going = 0;
  on("keydown", (event) => {
    const { key, target } = event;
    const menu = key === "Escape" && target.closest("details.menu[open]");
    if (menu) { menu.open = false; menu.firstElementChild.focus(); }
    if (body.dataset.shortcuts === "off" || event.metaKey || event.ctrlKey || event.altKey || event.defaultPrevented) return;
    if (target.closest("input, textarea, select, [contenteditable], dialog") || !document.getElementById("keys")) return;
    const went = going > Date.now() - 1500;
    going = key === "g" && !went ? Date.now() : 0;
    if (went && places[key]) location.assign(places[key]);
    else if (key === "/") find(!went);
    else if (key === "?") document.getElementById("keys").showModal();
    else return;
    event.preventDefault();
  });
})();
