// Shows a report on the page. Names come from strangers, so they are set as text only, never as HTML.

import { buckets } from "./periods.js";
import { clock, clockWithSeconds, dayName, isOld, moment, show, stretch } from "./format.js";
import { AUDIENCE } from "./report.js";

const TOP = 10;

const byId = (id) => document.getElementById(id);

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Replaces the children unless they are the same, and keeps the focus. */
function setChildren(parent, children) {
  const there = parent.children;
  if (children.length === there.length && children.every((child, at) => child === there[at])) return;
  const focused = document.activeElement;
  parent.replaceChildren(...children);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

const when = (time) => (isOld(time) ? moment(time) : clock(time));

export function setNumber(target, value) {
  target.dataset.value = value ?? "";
  setText(target, show(value, target.dataset.format));
  target.title = value === null || value === undefined ? "" : show(value, "exact");
}

export function drawReport(report, selection, charts, onEntry) {
  drawTiles(report);
  drawFunnel(report.overview);
  drawEntries(report, selection.entry, onEntry);
  for (const dimension of AUDIENCE) drawAudience(dimension, report.audience[dimension]);
  drawTimeChart(report, selection, charts.time);
  drawQualityChart(report, charts.quality);
}

function drawTiles({ overview, viewers, latest, estimated, series, period }) {
  for (const target of document.querySelectorAll(".value[data-metric]")) {
    if (target.dataset.metric !== "view") setNumber(target, overview[target.dataset.metric]);
  }
  setNumber(document.querySelector('.value[data-metric="view"]'), viewers?.view);
  setText(byId("now-hint"), viewers ? `at ${clockWithSeconds(viewers.time)}` : `no events since ${when(latest)}`);
  setText(byId("play-hint"), `of ${show(overview.playerImpression, "count")} impressions`);
  const each = overview.averageViewDuration;
  setText(byId("minutes-hint"), each === null ? "" : `${show(each, "minutes")} per play`);
  setText(byId("peak-hint"), peakTime(series, period, overview.peakView));
  setText(byId("sessions-hint"), estimated.includes("uniqueSessions") ? "an estimate, within 3 %" : "by session id");
}

function peakTime(series, period, peak) {
  const row = peak ? series.find(({ peakView }) => peakView === peak) : undefined;
  if (!row) return "at once, in ten seconds";
  const [at] = buckets([row], { ...period, start: null }, 0, null);
  return period.bucket !== "day" && !isOld(at.time)
    ? `${clock(at.time)}–${clock(at.until)}`
    : stretch(at, period.bucket);
}

function drawFunnel(overview) {
  const rows = [...byId("funnel").children];
  const most = Math.max(...rows.map(({ dataset }) => overview[dataset.metric]), 1);
  for (const row of rows) {
    const value = overview[row.dataset.metric];
    const ofPlays = overview.play && row.dataset.metric !== "playerImpression" ? value / overview.play : null;
    row.dataset.value = value;
    row.style.setProperty("--share", value / most);
    if (row.children.length === 1) {
      row.append(element("span", "count"), element("span", "share"), element("span", "track"));
    }
    setText(row.querySelector(".count"), show(value, "count"));
    setText(row.querySelector(".share"), ofPlays === null ? "" : show(ofPlays, "percent"));
  }
}

const entryRows = new Map();

function drawEntries({ entries, entryCount }, selected, onEntry) {
  const listed = entries.filter(({ entry }, position) => position < TOP || entry === selected);
  const rows = listed.map((row) => drawEntry(row, row.entry === selected, onEntry));
  setChildren(byId("top-rows"), rows);
  for (const [entry, row] of entryRows) if (!row.isConnected) entryRows.delete(entry);
  byId("top-nothing").hidden = rows.length > 0;
  setText(byId("top-hint"), entryCount > TOP ? `${TOP} of ${show(entryCount, "count")}` : "");
}

function drawEntry(numbers, isSelected, onEntry) {
  const { entry } = numbers;
  if (!entryRows.has(entry)) entryRows.set(entry, newEntry(entry, onEntry));
  const row = entryRows.get(entry);
  row.classList.toggle("selected", isSelected);
  row.querySelector("button").setAttribute("aria-pressed", String(isSelected));
  row.querySelectorAll("td").forEach((cell) => setNumber(cell, numbers[cell.dataset.column]));
  return row;
}

function newEntry(entry, onEntry) {
  const row = element("tr", "");
  row.dataset.entry = entry;
  const name = element("th", "");
  name.scope = "row";
  const button = element("button", "entry", entry);
  button.type = "button";
  button.title = entry;
  button.addEventListener("click", () => onEntry(entry));
  name.append(button);
  row.append(name);
  const columns = { play: "brief", minutesWatched: "brief", averageViewDropOff: "percent", playRatio: "percent" };
  for (const [column, format] of Object.entries(columns)) {
    const cell = element("td", "");
    Object.assign(cell.dataset, { column, format });
    row.append(cell);
  }
  return row;
}

function drawAudience(dimension, { rows, totals, count }) {
  const list = document.querySelector(`[data-list="${dimension}"]`);
  const total = totals.play ?? 0;
  const items = rows.map((row) => {
    const item = bar(row[dimension], row.play, total);
    Object.assign(item.dataset, { dimension, name: row[dimension], value: row.play });
    return item;
  });
  if (count > rows.length) {
    const others = total - rows.reduce((sum, { play }) => sum + play, 0);
    items.push(bar(`${count - rows.length} others`, others, total, "bar others"));
  }
  list.replaceChildren(...(items.length ? items : [element("li", "hint", "Nothing in this period.")]));
}

function bar(name, value, total, className = "bar") {
  const item = element("li", className);
  const share = total ? value / total : null;
  item.style.setProperty("--share", share ?? 0);
  const label = element("span", "label", name);
  label.title = name;
  item.append(label, element("span", "count", show(value, "count")), element("span", "share", show(share, "percent")));
  return item;
}

/** The values of a metric: 0 without events, null where events may still be on their way. */
function column(series, metric) {
  return series.map(({ row }) => (row === null ? null : row?.[metric] ?? 0));
}

function drawTimeChart({ series, period, now, latest }, { view }, chart) {
  const all = buckets(series, period, now, latest);
  const panel = (metric, label, type, colour, format, unit = "") => {
    return { label, unit, type, colour, format, values: column(all, metric) };
  };
  const plays = [
    panel("play", "Plays", "bar", "plays", "count"),
    panel("minutesWatched", "Watched", "line", "minutes", "whole", "min"),
  ];
  const viewers = [panel("peakView", "Most viewers at once", "line", "plays", "count")];
  chart.show(all, period.bucket, view === "viewers" ? viewers : plays);
}

function drawQualityChart({ series, period, now, latest }, chart) {
  const all = buckets(series, period, now, latest);
  chart.show(all, period.bucket, [
    { label: "Errors", unit: "", type: "bar", colour: "errors", format: "count", values: column(all, "error") },
    {
      label: "Buffering",
      unit: "s",
      type: "line",
      colour: "buffering",
      format: "whole",
      values: column(all, "bufferingTime"),
    },
  ]);
}

/** The period in words. */
export function scopeText({ start, end }, zone) {
  const from = start === null ? "The first event" : moment(start);
  return `${from} – ${end === null ? "now" : moment(end)} · ${zone}`;
}

/** The number of requests that wait to be compacted, and what to do; empty when none waits, or it is hidden. */
export function waitingText({ waiting }) {
  if (!waiting) return "";
  const requests = waiting === 1 ? "1 request waits" : `${show(waiting, "count")} requests wait`;
  const how = "keep “kanalony compact --every 60s” running, and allow two minutes";
  return `${requests} to be compacted: ${how}; after a crash, start the collector or run “kanalony recover”.`;
}

/** Explains why there are no numbers, and what might help. */
export function drawEmpty(report, { partner, entry }) {
  const { latest, period, waiting } = report;
  const [title, what, hint] = latest === null ? neverAny(waiting) : noneHere(latest, period, partner, entry);
  setText(byId("empty-title"), title);
  setText(byId("empty-what"), what);
  setText(byId("empty-hint"), [waitingText(report), hint].filter(Boolean).join(" "));
}

function neverAny(waiting) {
  if (waiting === null) return ["No events yet", "None of your events have been compacted yet.", ""];
  if (waiting) return ["No events have been compacted yet", "Events have arrived and are stored.", ""];
  return ["No events yet", "Nothing has arrived yet.", "Point players at the collector, or try “kanalony simulate”."];
}

function noneHere(latest, period, partner, entry) {
  const of = [partner && `partner ${partner}`, entry && `entry ${entry}`].filter(Boolean).join(" and ");
  const newest = `The newest event was received on ${dayName(latest)} at ${clock(latest)}.`;
  const wanted = latest < (period.start ?? 0) ? "a longer period" : "another period";
  return [
    "No events in this period",
    of ? `No events match ${of}. ${newest}` : newest,
    `Choose ${of ? "another partner or entry, or " : ""}${wanted}.`,
  ];
}

/** Fills the choices. A selected one stays even if it is not in the report. */
export function drawChoices({ partners, entries }, selection) {
  const names = new Set(partners.map(({ partner }) => partner));
  if (selection.partner) names.add(selection.partner);
  const sorted = [...names].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
  setOptions(byId("partner"), [["", "All partners"], ...sorted.map((name) => [name, name])]);
  if (byId("partner").value !== selection.partner) byId("partner").value = selection.partner;
  setOptions(byId("entries"), entries.map(({ entry }) => [entry, ""]));
}

/** Fills a list of choices only if they changed: filling closes an open list. */
function setOptions(list, wanted) {
  const there = [...list.options].map(({ value }) => value);
  if (there.length === wanted.length && there.every((value, at) => value === wanted[at][0])) return;
  list.replaceChildren(...wanted.map(([value, text]) => new Option(text, value)));
}
