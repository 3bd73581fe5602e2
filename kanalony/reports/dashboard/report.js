// The queries of one refresh, and their answers together.

import { Refused, ask, inTurn } from "./api.js";
import { MINUTE, SILENCE, bucketTime, forQuery, periodOf, zone } from "./periods.js";

export const AUDIENCE = ["country", "device", "browser"];

const BUCKET = 10_000;
const LISTED = 7;
const KNOWN_ENTRIES = 50;

const OVERVIEW = [
  ...["events", "play", "minutesWatched", "peakView", "playRatio", "uniqueSessions", "averageViewDuration"],
  ...["playerImpression", "playThrough25", "playThrough50", "playThrough75", "playThrough90", "playThrough100"],
  ...["averageJoinTime", "joinTimeP95", "rebufferRatio", "averageActualBitrate", "errorRate", "lossRate", "error"],
];

/** Parameters of a query for a selection and a period. */
function common({ partner, entry }, { start, end }) {
  const query = { timezone: zone };
  if (start !== null) query.startDate = forQuery(start);
  if (end !== null) query.endDate = forQuery(end);
  const filters = [];
  if (/^\d+$/.test(partner)) query.partnerId = partner;
  else if (partner) filters.push({ dimension: "partner", values: [partner] });
  if (entry) filters.push({ dimension: "entry", values: [entry] });
  if (filters.length) query.filters = JSON.stringify(filters);
  return query;
}

/** Fetches everything that the page shows for a selection. */
export async function fetchReport(selection, signal) {
  const now = Date.now();
  const period = periodOf(selection, now);
  const selected = common(selection, period);
  const ofPartner = common({ ...selection, entry: "" }, period);
  const everyone = common({ partner: "", entry: "" }, period);

  const overview = ask({ ...selected, metrics: OVERVIEW.join() }, signal);
  const top = (dimension, query, pageSize, metrics = "play") =>
    ask({ ...query, metrics, dimensions: dimension, orderBy: "-play", pageSize, pageIndex: 1 }, signal);
  const series = { metrics: "play,minutesWatched,peakView,error,bufferingTime", dimensions: period.bucket };
  const entryMetrics = "play,minutesWatched,averageViewDropOff,playRatio";

  const answers = await inTurn([
    () => overview,
    () => ask({ ...selected, ...series }, signal),
    () => overview.then(({ latest }) => watching(selection, latest, now, signal)),
    () => top("entry", ofPartner, KNOWN_ENTRIES, entryMetrics),
    () => top("partner", everyone, 500),
    ...AUDIENCE.map((dimension) => () => top(dimension, selected, LISTED)),
  ]);
  const [whole, overTime, viewers, entries, partners, ...audience] = answers;
  const latest = whole.latest === null ? null : Date.parse(whole.latest);
  const isBehind = !whole.rows.length || latest === null || now - latest > SILENCE;
  return {
    now,
    period,
    latest,
    waiting: isBehind ? await waitingRequests(whole.rows.length > 0, signal) : 0,
    overview: whole.rows[0] ?? null,
    estimated: whole.estimated,
    series: overTime.rows,
    viewers,
    entries: entries.rows,
    entryCount: entries.count,
    partners: partners.rows,
    audience: Object.fromEntries(AUDIENCE.map((dimension, number) => [dimension, audience[number]])),
  };
}

/** The number of requests that wait to be compacted; null when it is hidden, or fails beside numbers to show. */
async function waitingRequests(hasNumbers, signal) {
  try {
    return (await ask({ action: "waiting" }, signal)).requests;
  } catch (problem) {
    if (hasNumbers && problem instanceof Refused) return null;
    throw problem;
  }
}

/** The current viewers: views of the last whole ten seconds; null when events no longer arrive. */
async function watching(selection, latest, now, signal) {
  const newest = latest === null ? null : Date.parse(latest);
  if (newest === null || now - newest > SILENCE) return null;
  const time = Math.floor(newest / BUCKET) * BUCKET - BUCKET;
  const start = Math.floor(newest / MINUTE) * MINUTE - MINUTE;
  const query = common(selection, { start, end: null });
  const { rows } = await ask({ ...query, metrics: "view", dimensions: "tenSeconds" }, signal);
  const row = rows.find(({ tenSeconds }) => bucketTime(tenSeconds) === time);
  return { time, view: row?.view ?? 0 };
}
