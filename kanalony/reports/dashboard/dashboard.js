// The page: the selection, when to query, and messages when there is no answer.

import { Refused, Unauthorized, keepKey } from "./api.js";
import { TimeChart, followTheme } from "./charts.js";
import { clockWithSeconds } from "./format.js";
import { RELATIVE, forInput, periodOf, zone } from "./periods.js";
import { drawChoices, drawEmpty, drawReport, scopeText, waitingText } from "./render.js";
import { fetchReport } from "./report.js";

const DEFAULTS = { period: "24h", partner: "", entry: "", from: "", to: "", view: "plays" };

const byId = (id) => document.getElementById(id);
const charts = {
  time: new TimeChart(byId("time-chart"), byId("time-table")),
  quality: new TimeChart(byId("quality-chart"), byId("quality-table")),
};

let selection = readHash();
let shown = null;
let running = null;
let timer = 0;
let paused = false;
let locked = false;

// The selection: in the address, and in the controls.

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, given.get(name) ?? DEFAULTS[name]]));
  if (!RELATIVE[read.period] && read.period !== "custom") read.period = DEFAULTS.period;
  if (read.view !== "viewers") read.view = DEFAULTS.view;
  if (read.period !== "custom") read.from = read.to = "";
  return read;
}

function writeHash() {
  const parts = Object.entries(selection).filter(([name, value]) => name === "period" || value !== DEFAULTS[name]);
  history.pushState(null, "", `#${new URLSearchParams(parts)}`);
}

function syncControls() {
  for (const name of ["period", "entry", "from", "to"]) {
    if (byId(name).value !== selection[name]) byId(name).value = selection[name];
  }
  for (const field of document.querySelectorAll(".field.custom")) field.hidden = selection.period !== "custom";
  document.querySelector(`[name="view"][value="${selection.view}"]`).checked = true;
  const chip = byId("clear-entry");
  chip.hidden = !selection.entry;
  chip.querySelector("bdi").textContent = selection.entry;
  chip.setAttribute("aria-label", `Clear the entry ${selection.entry}`);
  drawChoices(shown?.report ?? { partners: [], entries: [] }, selection);
}

function select(part) {
  if (Object.entries(part).every(([name, value]) => selection[name] === value)) return;
  selection = { ...selection, ...part };
  writeHash();
  refresh();
}

/** Queries after the selection has changed, unless its period is invalid. */
function refresh() {
  syncControls();
  const problem = periodProblem();
  byId("period-problem").textContent = problem;
  byId("period-problem").hidden = !problem;
  for (const id of ["from", "to"]) byId(id).setAttribute("aria-invalid", String(Boolean(problem)));
  if (problem) {
    stop();
    byId("updated").textContent = "";
    setState("error");
    return;
  }
  setState("loading");
  byId("scope").textContent = scopeText(periodOf(selection, Date.now()), zone);
  load();
}

function periodProblem() {
  const { period, from, to } = selection;
  if (period !== "custom") return "";
  const [start, end] = [from, to].map((text) => (text ? new Date(text).getTime() : null));
  if (Number.isNaN(start) || Number.isNaN(end)) return "This is not a valid period: choose its start and end again.";
  if (end !== null && end <= (start ?? -Infinity)) return "The period ends before it begins: choose a later end.";
  return "";
}

// Queries.

function stop() {
  clearTimeout(timer);
  running?.abort();
  running = null;
}

async function load() {
  stop();
  const controller = new AbortController();
  running = controller;
  const asked = selection;
  try {
    const report = await fetchReport(asked, controller.signal);
    if (controller === running) show(report, asked);
  } catch (problem) {
    // The report is incomplete: its other queries are useless.
    if (controller === running) explain(problem);
    controller.abort();
  } finally {
    if (controller === running) {
      running = null;
      schedule();
    }
  }
}

function interval() {
  return periodOf(selection, Date.now()).every;
}

function schedule() {
  clearTimeout(timer);
  if (!document.hidden && !paused && !locked) timer = setTimeout(load, interval());
}

/** Queries at once if the last answer has become old meanwhile. */
function wake() {
  if (running || document.hidden || paused || locked || periodProblem()) return;
  if (!shown || Date.now() - shown.report.now >= interval()) load();
  else schedule();
}

// Display.

function setState(name) {
  document.body.dataset.state = name;
}

function show(report, asked) {
  locked = false;
  shown = { report, selection: asked };
  const { overview, now, period } = report;
  byId("unauthorized").hidden = true;
  byId("notice").textContent = overview ? waitingText(report) : "";
  byId("notice").hidden = !byId("notice").textContent;
  byId("report").hidden = !overview;
  byId("empty").hidden = Boolean(overview);
  byId("scope").textContent = scopeText(period, zone);
  byId("updated").textContent = `Updated ${clockWithSeconds(now)}`;
  drawChoices(report, asked);
  if (overview) drawReport(report, asked, charts, toggleEntry);
  else drawEmpty(report, asked);
  setState(overview ? "ready" : "empty");
}

function explain(problem) {
  setState("error");
  if (problem instanceof Unauthorized) {
    askForKey(problem.tried);
    return;
  }
  const what = problem instanceof Refused ? problem.text : "The server can't be reached.";
  const again = paused ? "" : `Trying again every ${interval() / 1000} seconds.`;
  byId("notice").textContent = [what, age(), again].filter(Boolean).join(" ");
  byId("notice").hidden = false;
}

/** How old the numbers on the page are, when newer ones are not available. */
function age() {
  if (!shown) return "";
  const other = ["period", "partner", "entry", "from", "to"].some((name) => shown.selection[name] !== selection[name]);
  const at = clockWithSeconds(shown.report.now);
  return other ? `The numbers are those of the selection before, from ${at}.` : `The numbers are from ${at}.`;
}

function askForKey(tried) {
  locked = true;
  shown = null;
  byId("report").hidden = true;
  byId("empty").hidden = true;
  byId("notice").hidden = true;
  byId("unauthorized").hidden = false;
  byId("key-problem").textContent = tried ? "The server does not know this key." : "";
  byId("key").setAttribute("aria-invalid", String(tried));
  byId("updated").textContent = "A key is required";
  byId("key").focus();
}

function toggleEntry(entry) {
  select({ entry: entry === selection.entry ? "" : entry });
}

// Controls.

byId("filters").addEventListener("submit", (event) => event.preventDefault());

byId("period").addEventListener("change", ({ target }) => {
  if (target.value !== "custom") {
    select({ period: target.value, from: "", to: "" });
    return;
  }
  const { start } = periodOf(selection, Date.now());
  select({ period: "custom", from: forInput(start), to: "" });
});

for (const id of ["from", "to"]) {
  byId(id).addEventListener("change", ({ target }) => {
    if (target.validity.valid) select({ [id]: target.value });
  });
}

byId("partner").addEventListener("change", ({ target }) => select({ partner: target.value, entry: "" }));
byId("entry").addEventListener("change", ({ target }) => select({ entry: target.value.trim() }));
byId("entry").addEventListener("input", ({ target }) => {
  const known = [...byId("entries").options].some(({ value }) => value === target.value);
  if (known || target.value === "") select({ entry: target.value });
});
byId("clear-entry").addEventListener("click", () => {
  select({ entry: "" });
  byId("entry").focus();
});

byId("view").addEventListener("change", ({ target }) => {
  selection = { ...selection, view: target.value };
  writeHash();
  if (shown?.report.overview) drawReport(shown.report, selection, charts, toggleEntry);
});

byId("pause").addEventListener("click", ({ target }) => {
  paused = !paused;
  target.setAttribute("aria-pressed", String(paused));
  if (paused) clearTimeout(timer);
  else wake();
});

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-problem").textContent = "";
  locked = false;
  setState("loading");
  load();
});

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : wake()));
window.addEventListener("online", wake);
window.addEventListener("hashchange", () => {
  const read = readHash();
  if (Object.keys(read).every((name) => read[name] === selection[name])) return;
  selection = read;
  refresh();
});

followTheme(Object.values(charts));
refresh();
