// Formats of numbers and times.

const LANGUAGE = "en-GB";
const NOTHING = "–";

const number = (options) => new Intl.NumberFormat(LANGUAGE, options);
// A British million is "m", which looks like minutes.
const compact = (maximumFractionDigits) => {
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits });
};
const time = (options) => new Intl.DateTimeFormat(LANGUAGE, options);

const whole = number({ maximumFractionDigits: 0 });
const short = compact(2);
const tick = compact(1);
const exact = number({ maximumFractionDigits: 3 });
const percent = number({ style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const finePercent = number({ style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
const fine = number({ minimumFractionDigits: 2, maximumFractionDigits: 2 });
const oneDigit = number({ minimumFractionDigits: 1, maximumFractionDigits: 1 });

const hours = time({ hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const seconds = time({ hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const weekday = time({ weekday: "short", day: "numeric", month: "short" });
const fullDay = time({ weekday: "short", day: "numeric", month: "short", year: "numeric" });
const day = time({ day: "numeric", month: "short" });

const tiny = (value) => value !== 0 && Math.abs(value) < 0.01;

const FORMATS = {
  count: (value) => (Math.abs(value) >= 1e7 ? short : whole).format(value),
  whole: (value) => (Math.abs(value) >= 1e7 ? short : Math.abs(value) < 100 ? oneDigit : whole).format(value),
  brief: (value) => (Math.abs(value) >= 1e6 ? short : whole).format(value),
  percent: (value) => (tiny(value) ? finePercent : percent).format(value),
  seconds: (value) => `${fine.format(value)} s`,
  minutes: (value) => `${oneDigit.format(value)} min`,
  kbps: (value) => `${whole.format(value)} kbps`,
  exact: (value) => exact.format(value),
  tick: (value) => tick.format(value),
};

/** Formats a number by the name of a format above. */
export function show(value, format) {
  return value === null || value === undefined ? NOTHING : FORMATS[format](value);
}

export const clock = (at) => hours.format(at);
export const clockWithSeconds = (at) => seconds.format(at);
export const shortDay = (at) => day.format(at);

function sameYear(at) {
  return new Date(at).getFullYear() === new Date().getFullYear();
}

export const dayName = (at) => (sameYear(at) ? weekday : fullDay).format(at);
export const moment = (at) => `${dayName(at)}, ${clock(at)}`;

/** Whether a time is so long ago that its day is shown too. */
export const isOld = (at) => Date.now() - at > 12 * 3600_000;

/** Formats a bucket of time: "Mon 23 Nov, 15:00–16:00". */
export function stretch({ time: at, until }, bucket) {
  if (bucket === "day") return dayName(at);
  return bucket === "hour" ? `${moment(at)}–${clock(until)}` : moment(at);
}
