"use strict";
// Times in the viewer's own zone, a live overview, and a key for search. Everything else works without.

function localTimes(within) {
  for (const time of within.querySelectorAll("time")) {
    const exact = new Date(time.dateTime);
    if (!isNaN(exact)) time.title = exact.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" }) + " (" + time.title + ")";
  }
}

function follow(live, said) {
  let source = null;
  function show(event) {
    said.textContent = "";
    const focused = document.activeElement && live.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const chosen = getSelection();
    if (chosen && !chosen.isCollapsed && live.contains(chosen.anchorNode)) return; // somebody copies a line
    const next = document.createElement("template");
    next.innerHTML = event.data;
    live.replaceChildren(next.content);
    localTimes(live);
    if (focused) [...live.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
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

localTimes(document);
const live = document.getElementById("live");
if (live) follow(live, document.getElementById("connection"));
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const field = document.querySelector('[data-key="/"]');
  if (field) { event.preventDefault(); field.focus(); }
});

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
