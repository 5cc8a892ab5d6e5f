"use strict";
// Times in the viewer's own zone, live parts, keys, a palette, and forms that say what is wrong while somebody types.
// Reading and every single action work without it.

const base = document.body.dataset.base;

// --- times ---

const SHORT = new Intl.DateTimeFormat(undefined, { weekday: "short", year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" });

function localTimes(within) {
  for (const time of within.querySelectorAll("time:not([data-seen])")) {
    const exact = new Date(time.dateTime);
    if (isNaN(exact)) continue;
    time.dataset.seen = "";
    if (time.hasAttribute("data-clock")) time.textContent = SHORT.format(exact);
    time.title = exact.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" }) + " (" + time.title + ")";
  }
}

function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size * 2) return Math.floor(seconds / size) + " " + unit;
  return Math.floor(seconds) + " s";
}

function agesGoOn() {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("time[data-seen]")) {
    const shown = time.textContent;
    if (!shown.startsWith("in ") && !shown.endsWith(" ago")) continue;
    const seconds = (Date.now() - new Date(time.dateTime)) / 1000;
    const next = seconds >= 0 ? age(seconds) + " ago" : "in " + age(-seconds);
    if (next !== shown) time.textContent = next;
  }
}

// --- live parts ---

// Makes one element like another and keeps what is the same, so that focus, selection and the place on the page stay.
function become(old, next) {
  if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName) return old.replaceWith(next);
  if (old.nodeType !== Node.ELEMENT_NODE) { if (old.data !== next.data) old.data = next.data; return; }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  children(old, next);
}

const isBlank = (node) => node.nodeType === Node.TEXT_NODE && !node.data.trim();
const keyOf = (node) => (node.nodeType !== Node.ELEMENT_NODE ? "" : node.id || (node.matches("tr, li") && node.querySelector("a[href]")?.getAttribute("href")) || "");

// Rows have a key: one that comes pushes others down, and does not become them.
function children(old, next) {
  const wanted = [...next.childNodes], staying = new Set(wanted.map(keyOf));
  let at = old.firstChild;
  const drop = () => { const gone = at; at = at.nextSibling; gone.remove(); };
  for (const child of wanted) {
    const key = keyOf(child);
    while (at && (isBlank(at) ? !isBlank(child) : keyOf(at) && !staying.has(keyOf(at)))) drop();
    if (at && keyOf(at) === key) { const after = at.nextSibling; become(at, child); at = after; }
    else old.insertBefore(child, at);
  }
  while (at) drop();
}

function follow(live, said) {
  let source = null;
  function show(event) {
    said.textContent = "";
    const chosen = getSelection();
    if (chosen && !chosen.isCollapsed && live.contains(chosen.anchorNode)) return; // somebody copies a line
    const next = document.createElement("template");
    next.innerHTML = event.data;
    localTimes(next.content);
    children(live, next.content);
    mark();
  }
  function start() {
    if (source || document.hidden) return;
    source = new EventSource(live.dataset.source);
    source.onmessage = show;
    source.onerror = () => { said.textContent = "The connection is lost: these figures are old. Trying again …"; };
  }
  function stop() {
    if (source) source.close();
    source = null;
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  addEventListener("pagehide", stop);
  addEventListener("pageshow", start);
  start();
}

// --- rows ---

const here = "row of " + location.pathname + location.search;
let row = null; // the address of the row that is chosen: rows come and go; kept for those who come back

const rows = () => [...document.querySelectorAll("main tbody tr, main .rows > li")].filter((each) => each.querySelector("a[href]"));
const linkOf = (each) => each.querySelector("th a[href]") || each.querySelector("a[href]");

function mark() {
  for (const each of rows()) each.classList.toggle("chosen", row !== null && linkOf(each).getAttribute("href") === row);
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  const now = all.findIndex((each) => each.classList.contains("chosen"));
  const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, now + by))];
  row = linkOf(next).getAttribute("href");
  stored(here, row, window.sessionStorage);
  mark();
  linkOf(next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

const chosen = () => rows().find((each) => each.classList.contains("chosen"));

// --- keys ---

const keys = document.getElementById("keys");
const palette = document.getElementById("palette");
const single = document.getElementById("single-keys");
let wentG = 0;

function stored(name, value, kept) {
  try { kept ??= localStorage; return value === undefined ? kept.getItem(name) : kept.setItem(name, value); } catch { return null; }
}

function titleOf(element) {
  const label = element.labels && element.labels[0] ? element.labels[0].textContent : element.textContent;
  return (element.getAttribute("aria-label") || label || element.name).replace(/\s+/g, " ").trim();
}

function use(element) {
  if (element.matches("input:not([type=checkbox]), select, textarea")) { element.focus(); if (element.select) element.select(); return; }
  element.click();
  const details = element.closest("summary") && element.parentElement;
  if (details && details.open) (details.querySelector("input:not([type=hidden]), button") || element).focus();
}

function showKeys() {
  const go = [...document.querySelectorAll("[data-go]")].map((link) => link.dataset.go + " " + link.textContent.trim());
  document.getElementById("go-keys").textContent = go.join(" · ");
  const here = document.getElementById("here-keys");
  here.replaceChildren();
  for (const element of document.querySelectorAll("main [data-key]")) {
    const term = document.createElement("dt"), what = document.createElement("dd"), key = document.createElement("kbd");
    key.textContent = element.dataset.key;
    term.append(key);
    what.textContent = titleOf(element);
    here.append(term, what);
  }
  document.getElementById("here-title").hidden = !here.children.length;
  keys.showModal();
}

const DEEDS = {
  j: () => move(1), k: () => move(-1), o: () => chosen() && linkOf(chosen()).click(),
  "?": showKeys, ":": () => openPalette(),
  "[": () => (document.querySelector("main a[rel=prev]") || { click: () => history.back() }).click(),
  "]": () => document.querySelector("main a[rel=next]")?.click(),
  u: () => [...document.querySelectorAll(".crumbs a")].pop()?.click(),
};

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") { event.preventDefault(); openPalette(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !single.checked) return;
  if (keys.open || palette.open || event.target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select")) return;
  let deed = DEEDS[event.key];
  if (wentG && event.timeStamp - wentG < 1500) {
    wentG = 0;
    const link = [...document.querySelectorAll("[data-go]")].find((each) => each.dataset.go === event.key);
    deed = link && (() => link.click());
  } else if (event.key === "g") {
    wentG = event.timeStamp;
    return;
  } else if (event.key === "x" && chosen()?.querySelector("input[type=checkbox]")) {
    deed = () => chosen().querySelector("input[type=checkbox]").click();
  } else {
    const element = [...document.querySelectorAll("main [data-key]")].find((each) => each.dataset.key === event.key && !each.disabled);
    if (element) deed = () => use(element);
  }
  if (deed) { event.preventDefault(); deed(); }
});

// --- the palette ---

const input = document.getElementById("palette-input");
const list = document.getElementById("palette-list");
let known = null; // job types and schedules, asked once
let found = [];
let place = 0;

function entries() {
  const pages = [...document.querySelectorAll("nav [data-go]")].map((link) => ({ kind: "page", title: titleOf(link), go: () => link.click() }));
  const here = [...document.querySelectorAll("main form button:not([type=button]), main a.button, main summary.button, main [data-key]")]
    .filter((each, at, all) => all.indexOf(each) === at && !each.disabled && each.checkVisibility())
    .map((each) => ({ kind: "here", title: titleOf(each), go: () => use(each) }));
  const more = (known || []).map((each) => ({ kind: each.kind, title: each.title, go: () => { location.href = base + "/" + each.path; } }));
  return [...here, ...pages, ...more];
}

function filter() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  found = entries().filter((each) => words.every((word) => (each.kind + " " + each.title).toLowerCase().includes(word))).slice(0, 12);
  place = 0;
  list.replaceChildren(...found.map((each, at) => {
    const item = document.createElement("li"), kind = document.createElement("span");
    item.id = "palette-" + at;
    item.role = "option";
    item.dir = "auto";
    kind.className = "quiet";
    kind.textContent = " " + each.kind;
    item.append(each.title, kind);
    item.addEventListener("click", () => { place = at; run(); });
    return item;
  }));
  if (!found.length) { const none = document.createElement("li"); none.role = "option"; none.className = "quiet"; none.ariaDisabled = "true"; none.textContent = "Nothing of that name"; list.append(none); }
  point();
}

function point() {
  [...list.children].forEach((item, at) => { item.ariaSelected = String(at === place); });
  input.setAttribute("aria-activedescendant", found.length ? "palette-" + place : "");
  list.children[place]?.scrollIntoView({ block: "nearest" });
}

function run() {
  const entry = found[place];
  palette.close();
  if (entry) entry.go();
}

async function openPalette() {
  if (palette.open) return;
  if (keys.open) keys.close();
  input.value = "";
  palette.showModal();
  filter();
  if (known) return;
  try {
    known = (await (await fetch(base + "/palette", { headers: { accept: "application/json" } })).json()).entries;
    if (palette.open) filter();
  } catch { known = null; }
}

input.addEventListener("input", filter);
input.addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by && found.length) { event.preventDefault(); place = (place + by + found.length) % found.length; point(); }
  if (event.key === "Enter") { event.preventDefault(); run(); }
});
for (const dialog of [keys, palette]) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// --- forms that are checked while somebody types ---

function check(form) {
  let timer = 0, under = null;
  const touched = new Set();
  async function ask() {
    under?.abort();
    under = new AbortController();
    try {
      const answer = await fetch(form.dataset.check, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { accept: "application/json" }, signal: under.signal });
      if (answer.ok) show(await answer.json());
    } catch { /* the next key asks again, and saving says all */ }
  }
  function show({ html, problems }) {
    const times = document.getElementById("times"), next = document.createElement("template");
    next.innerHTML = html;
    localTimes(next.content);
    if (times) children(times, next.content);
    for (const field of form.querySelectorAll("[data-field]")) {
      const problem = problems[field.dataset.field] || "", hint = field.querySelector("[data-help]");
      if (problem && !touched.has(field.dataset.field) && !field.matches(".refused")) continue; // not before somebody was there
      field.classList.toggle("refused", Boolean(problem));
      hint.textContent = problem || hint.dataset.help;
      hint.className = problem ? "problem-text" : "quiet";
      const control = field.querySelector("input, select, textarea");
      if (problem) control.setAttribute("aria-invalid", "true"); else control.removeAttribute("aria-invalid");
    }
  }
  let isSent = false;
  form.addEventListener("submit", () => { isSent = true; });
  addEventListener("beforeunload", (event) => { if (touched.size && !isSent) event.preventDefault(); });
  form.addEventListener("input", (event) => {
    const field = event.target.closest("[data-field]");
    if (field) touched.add(field.dataset.field);
    clearTimeout(timer);
    timer = setTimeout(ask, 250);
  });
}

// --- the page ---

localTimes(document);
row = stored(here, undefined, window.sessionStorage);
mark();
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
setInterval(agesGoOn, 5000);
single.checked = stored("single-keys") !== "off";
single.addEventListener("change", () => stored("single-keys", single.checked ? "on" : "off"));
for (const [button, deed] of [["open-keys", showKeys], ["open-palette", openPalette]]) {
  document.getElementById(button).hidden = false;
  document.getElementById(button).addEventListener("click", deed);
}
for (const form of document.querySelectorAll("form[data-check]")) check(form);
const live = document.getElementById("live");
if (live) follow(live, document.getElementById("connection"));

// --- forms: what can be chosen is looked for while one types; JSON is checked before it is sent; times are in the zone at hand ---

function offer(input, list) {
  let last = "", timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const text = input.value;
      if (text === last || [...list.options].some((option) => option.value === text)) return;
      last = text;
      const answer = await fetch(list.dataset.options + "&q=" + encodeURIComponent(text)).catch(() => null);
      if (!answer || !answer.ok || input.value !== text) return;
      list.replaceChildren(...(await answer.json()).map(({ value, label }) => new Option(label, value)));
    }, 150);
  });
}
for (const list of document.querySelectorAll("datalist[data-options]")) offer(document.querySelector(`input[list="${list.id}"]`), list);
for (const area of document.querySelectorAll("textarea[data-json]")) {
  area.addEventListener("input", () => {
    let problem = "";
    try { if (area.value.trim()) JSON.parse(area.value); } catch (error) { problem = error.message; }
    area.setCustomValidity(problem);
  });
}
for (const moment of document.querySelectorAll("span.moment")) {
  const [time, zone] = moment.querySelectorAll("input");
  if (!time.value && zone.value === "UTC") zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
}
for (const shown of document.querySelectorAll("details.sql")) {
  shown.addEventListener("toggle", () => { if (shown.open) getSelection().selectAllChildren(shown.querySelector("pre")); });
}

// Charts of the overview, drawn anew once a minute while somebody looks.
const charts = document.querySelector("#charts[data-source]");
if (charts) setInterval(async () => {
  if (document.hidden || charts.contains(document.activeElement)) return;
  try {
    const answer = await fetch(`${charts.dataset.source}?most=few`, { headers: { accept: "text/html" } });
    const fresh = answer.ok && new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("charts");
    if (fresh) { charts.replaceChildren(...fresh.childNodes); localTimes(charts); }
  } catch { /* the live part says that the connection is lost */ }
}, 60000);
