// Queries to the server, and the three ways in which they fail.

const KEY = "kanalony.key";
const TIMEOUT = 60_000;
const TOGETHER = 2;

/** No answer, or one that is not JSON. */
export class Unreachable extends Error {}

/** The server refuses the query, and says why. */
export class Refused extends Error {
  constructor(message, hint) {
    super(message);
    this.text = hint ? `The server says: ${message} – ${hint}.` : `The server says: ${message}.`;
  }
}

/** A key is required; `tried` is whether one was sent. */
export class Unauthorized extends Error {
  constructor(tried) {
    super("unauthorized");
    this.tried = tried;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Sends one query: `query` has the parameters of the query action, or names another action. */
export async function ask(query, signal) {
  const key = sessionStorage.getItem(KEY);
  const parameters = new URLSearchParams({ service: "analytics", action: "query", ...query });
  const limited = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]);
  let response, answer;
  try {
    response = await fetch(`/api_v3/index.php?${parameters}`, {
      headers: key === null ? {} : { Authorization: `Bearer ${key}` },
      signal: limited,
      cache: "no-store",
    });
    answer = await response.json();
  } catch (error) {
    throw new Unreachable("no answer", { cause: error });
  }
  if (response.ok) return answer;
  if (response.status === 401) throw new Unauthorized(key !== null);
  if (answer?.data?.message) throw new Refused(answer.data.message, answer.data.hint);
  throw new Unreachable(`status ${response.status}`);
}

/** Runs tasks (functions that return promises), a few at a time; resolves to their results, in order. */
export async function inTurn(tasks) {
  const results = [];
  const waiting = tasks.entries();
  const worker = async () => {
    for (const [number, task] of waiting) results[number] = await task();
  };
  await Promise.all(Array.from({ length: TOGETHER }, worker));
  return results;
}
