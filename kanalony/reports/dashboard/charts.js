// Charts over time: stacked panels that share the time axis, and the same numbers as a table.

import { clock, shortDay, show, stretch } from "./format.js";

const { Chart } = window;

const STEPS = {
  minute: [1, 2, 5, 10, 15, 30, 60],
  hour: [1, 2, 3, 6, 12, 24],
  day: [1, 2, 7, 14, 28, 91, 182, 364],
};
const TICK_WIDTH = 58;
const FADED = "80";

function theme() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

/** The minute in its hour, or the hour in its day, of a time; days are counted from the first bucket. */
function position(time, bucket, index) {
  const date = new Date(time);
  return bucket === "minute" ? date.getMinutes() : bucket === "hour" ? date.getHours() : index;
}

function ticks(buckets, bucket, width) {
  const most = Math.max(2, Math.floor(width / TICK_WIDTH));
  const enough = (step) => buckets.filter(({ time }, index) => position(time, bucket, index) % step === 0);
  const step = STEPS[bucket].find((candidate) => enough(candidate).length <= most) ?? STEPS[bucket].at(-1);
  return buckets.flatMap(({ time }, index) => (position(time, bucket, index) % step ? [] : [{ value: index }]));
}

function tickLabel({ time }, bucket, isFirst) {
  if (bucket === "day") return shortDay(time);
  const date = new Date(time);
  const midnight = date.getHours() === 0 && date.getMinutes() === 0;
  return midnight || isFirst ? [clock(time), shortDay(time)] : clock(time);
}

export class TimeChart {
  /** `details` is the element that holds the chart as a table. */
  constructor(canvas, details) {
    this.canvas = canvas;
    this.details = details;
    this.shown = null;
    this.chart = null;
    this.scroll = details.appendChild(document.createElement("div"));
    this.scroll.className = "scroll";
    this.scroll.tabIndex = 0;
    this.scroll.setAttribute("role", "region");
    this.scroll.setAttribute("aria-label", "The chart as a table");
    details.addEventListener("toggle", () => this.drawTable());
  }

  /** `panels` are {label, unit, type, colour, format, values}, from the top; each value belongs to a bucket. */
  show(buckets, bucket, panels) {
    this.shown = { buckets, bucket, panels };
    this.draw();
    this.drawTable();
    this.canvas.setAttribute("aria-label", this.summary());
  }

  /** Draws the data with the current colours. */
  draw() {
    if (!this.shown) return;
    const data = { labels: this.shown.buckets.map(({ time }) => time), datasets: this.datasets() };
    if (this.chart) {
      this.chart.data = data;
      this.chart.options = this.options();
      this.chart.update("none");
    } else {
      this.chart = new Chart(this.canvas, { type: "bar", data, options: this.options() });
    }
  }

  datasets() {
    const colours = theme();
    const { buckets, panels } = this.shown;
    return panels.map(({ label, type, colour, values }, number) => {
      const ink = colours(colour);
      const common = { label, type, data: values, yAxisID: `y${number}` };
      if (type === "bar") {
        const fills = buckets.map(({ partial }) => (partial ? ink + FADED : ink));
        return { ...common, backgroundColor: fills, borderRadius: 2, categoryPercentage: 0.9, barPercentage: 0.9 };
      }
      const isPartial = (index) => buckets[index]?.partial;
      return {
        ...common,
        borderColor: ink,
        backgroundColor: ink,
        borderWidth: 2,
        pointRadius: buckets.length === 1 ? 3 : 0,
        pointHitRadius: 8,
        pointHoverRadius: 4,
        segment: {
          borderDash: ({ p0DataIndex: from, p1DataIndex: to }) =>
            isPartial(from) || isPartial(to) ? [4, 3] : undefined,
        },
      };
    });
  }

  options() {
    const colours = theme();
    const { buckets, bucket, panels } = this.shown;
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11 };
    const color = colours("muted");
    const scales = {
      x: {
        type: "category",
        offset: true,
        grid: { display: false },
        border: { color: colours("line") },
        afterBuildTicks: (scale) => {
          scale.ticks = ticks(buckets, bucket, scale.width);
        },
        ticks: {
          color,
          font,
          autoSkip: false,
          maxRotation: 0,
          callback: (value, index) => tickLabel(buckets[value], bucket, index === 0),
        },
      },
    };
    panels.forEach(({ label, unit, format }, number) => {
      scales[`y${number}`] = {
        stack: "panels",
        // The panel with the least weight is drawn at the bottom, on the time axis; `offset` keeps the others apart.
        weight: panels.length - number,
        stackWeight: number < panels.length - 1 ? 1.3 : 1,
        offset: number < panels.length - 1,
        beginAtZero: true,
        suggestedMax: 1,
        grid: { color: colours("grid") },
        border: { display: false },
        title: { display: true, text: unit ? `${label} (${unit})` : label, color, font },
        ticks: {
          color,
          font,
          autoSkip: false,
          maxTicksLimit: panels.length > 1 ? 4 : 6,
          precision: format === "count" ? 0 : undefined,
          callback: (value) => show(value, "tick"),
        },
      };
    });
    return {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "index", intersect: false },
      layout: { padding: { top: 6, right: 4 } },
      scales,
      plugins: { legend: { display: false }, tooltip: this.tooltip(colours, font) },
    };
  }

  tooltip(colours, font) {
    const { buckets, bucket, panels } = this.shown;
    return {
      backgroundColor: colours("text"),
      titleColor: colours("card"),
      bodyColor: colours("card"),
      titleFont: { ...font, size: 12, weight: "600" },
      bodyFont: { ...font, size: 12 },
      padding: 10,
      boxPadding: 5,
      boxWidth: 8,
      boxHeight: 8,
      cornerRadius: 6,
      callbacks: {
        title: ([item]) => this.name(buckets[item.dataIndex], bucket),
        label: (item) => {
          const { label, unit, format } = panels[item.datasetIndex];
          return `${label}: ${show(item.raw, format)}${unit ? ` ${unit}` : ""}`;
        },
      },
    };
  }

  name(at, bucket) {
    return stretch(at, bucket) + (at.partial ? " (partial)" : "");
  }

  summary() {
    const { buckets, bucket, panels } = this.shown;
    if (!buckets.length) return "No data.";
    const span = `from ${stretch(buckets[0], bucket)} to ${stretch(buckets.at(-1), bucket)}`;
    const highest = panels.map(({ label, unit, format, values }) => {
      const most = Math.max(...values);
      const when = stretch(buckets[values.indexOf(most)] ?? buckets[0], bucket);
      return `${label}: highest ${show(most, format)}${unit ? ` ${unit}` : ""}, ${when}.`;
    });
    return `By ${bucket}, ${span}. ${highest.join(" ")} The same numbers are in the table below.`;
  }

  /** The table has up to a thousand elements, so it is created only while it is open. */
  drawTable() {
    if (!this.details.open || !this.shown) {
      this.scroll.replaceChildren();
      return;
    }
    const { buckets, bucket, panels } = this.shown;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const title of ["Time", ...panels.map(({ label, unit }) => (unit ? `${label} (${unit})` : label))]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      head.append(cell);
    }
    const body = table.createTBody();
    buckets.forEach((at, index) => {
      const row = body.insertRow();
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = this.name(at, bucket);
      row.append(name);
      for (const { values, format } of panels) row.insertCell().textContent = show(values[index], format);
    });
    this.scroll.replaceChildren(table);
  }
}

/** Redraws charts when the colour scheme changes: a canvas does not follow CSS. */
export function followTheme(charts) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
}
