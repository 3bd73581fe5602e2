// Periods, and the buckets of time that charts divide them into. Times are ms since 1970; the time zone is the
// browser's.

export const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

export const RELATIVE = {
  __proto__: null, // names come from the address, and inherited properties are no periods
  "1h": { length: HOUR, bucket: "minute", every: 10_000 },
  "24h": { length: DAY, bucket: "hour", every: 30_000 },
  "7d": { length: 7 * DAY, bucket: "day", every: 30_000 },
  "30d": { length: 30 * DAY, bucket: "day", every: 30_000 },
};

/** If the newest event is older than this, events no longer arrive; otherwise some may still be on their way. */
export const SILENCE = 5 * MINUTE;

const MOST_EMPTY = 1000;

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

const two = (number) => String(number).padStart(2, "0");

/** Formats a time for a query: MM/dd/yyyy HH:mm. */
export function forQuery(time) {
  const date = new Date(time);
  const year = String(date.getFullYear()).padStart(4, "0");
  return `${two(date.getMonth() + 1)}/${two(date.getDate())}/${year} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** Formats a time for an input of type datetime-local. */
export function forInput(time) {
  const date = new Date(time);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day}T${two(date.getHours())}:${two(date.getMinutes())}`;
}

function floor(time, bucket) {
  const date = new Date(time);
  if (bucket === "day") date.setHours(0, 0, 0, 0);
  else if (bucket === "hour") date.setMinutes(0, 0, 0);
  else date.setSeconds(0, 0);
  return date.getTime();
}

/** The end of the bucket that begins at a time. */
export function endOf(time, bucket) {
  if (bucket === "minute") return time + MINUTE;
  if (bucket === "hour") return time + HOUR;
  const date = new Date(time);
  date.setDate(date.getDate() + 1);
  return floor(date, "day");
}

/** The period of a selection at `now`; `start` and `end` are null where the period is open. */
export function periodOf({ period, from, to }, now) {
  const relative = RELATIVE[period];
  if (relative) {
    const start = floor(now - relative.length, relative.bucket === "minute" ? "minute" : "hour");
    return { start, end: null, bucket: relative.bucket, every: relative.every };
  }
  const start = from ? new Date(from).getTime() : null;
  const end = to ? new Date(to).getTime() : null;
  const length = (end ?? now) - (start ?? 0);
  const bucket = length <= 3 * HOUR ? "minute" : length <= 3 * DAY ? "hour" : "day";
  return { start, end, bucket, every: 30_000 };
}

/** The beginning of a row's bucket. Date would parse a day without a time as UTC. */
export function bucketTime(text) {
  return new Date(text.length === 10 ? `${text}T00:00` : text).getTime();
}

/**
 * The rows of a period as buckets without gaps: `time`, `until`, `partial` (the period or events cover only a part),
 * and `row`, which is undefined in a bucket without events and null where events may still be on their way.
 */
export function buckets(rows, period, now, latest) {
  const { bucket, start } = period;
  const found = new Map(rows.map((row) => [bucketTime(row[bucket]), row]));
  const last = Math.min(now, period.end ?? Infinity);
  const arriving = latest !== null && now - latest <= SILENCE ? latest : Infinity;
  return times(found, bucket, start, last).map((time) => {
    const until = endOf(time, bucket);
    const partial = (start !== null && time < start) || until > last || until > arriving;
    const row = found.get(time) ?? (time > arriving ? null : undefined);
    return { time, until, partial, row };
  });
}

/** Beginnings of buckets. A period that begins long before the first event is drawn from that event on. */
function times(found, bucket, start, end) {
  const lengths = { minute: MINUTE, hour: HOUR, day: DAY };
  const first = found.size ? Math.min(...found.keys()) : null;
  const begin = start === null || (end - start) / lengths[bucket] > MOST_EMPTY ? first : floor(start, bucket);
  if (begin === null) return [];
  const all = new Set(found.keys());
  for (let time = begin; time < end; time = endOf(time, bucket)) all.add(time);
  return [...all].sort((one, other) => one - other);
}
