// The way to the instance: requests, and the stream of what happens.

const ROOT = "/api/v1";
const KEY = "xdp-lb-token";
// The stream says something at least this often (keep-alive), in seconds.
const KEEP_ALIVE = 15;
const LONGEST_WAIT = 15;
// A page that nobody sees gives its connection back: browsers have few of them to one place.
const HIDDEN = 15_000;

let token = sessionStorage.getItem(KEY);

/** An answer that is a problem document (RFC 9457), or no answer. */
export class Problem extends Error {
  constructor(status, document, retry) {
    super(document?.detail ?? `the answer was ${status}`);
    this.status = status;
    this.kind = String(document?.type ?? "").split("#")[1];
    this.errors = Array.isArray(document?.errors) ? document.errors : [];
    this.retry = retry;
  }
}

export const hasToken = () => token != null;

export function setToken(value) {
  token = value;
  if (value == null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, value);
}

export const escape = encodeURIComponent;

export const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** The answer to a request; throws a [`Problem`] where it is none that was hoped for. */
export async function send(path, { method = "GET", headers = {}, body, signal } = {}) {
  const all = new Headers(headers);
  if (token != null) all.set("authorization", `Bearer ${token}`);
  if (body !== undefined) all.set("content-type", "application/json");
  const text = body === undefined ? undefined : JSON.stringify(body);
  const options = { method, headers: all, body: text, signal, cache: "no-store", redirect: "error" };
  const answer = await fetch(ROOT + path, options);
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  throw new Problem(answer.status, problem, Number(answer.headers.get("retry-after")) || 1);
}

/** What is there; waits where the instance has enough requests at the moment. */
export async function get(path, signal) {
  for (;;) {
    try {
      return await (await send(path, { signal })).json();
    } catch (problem) {
      if (problem.status !== 429) throw problem;
      await pause(problem.retry);
    }
  }
}

/** A whole list, page by page. */
export async function all(path, signal) {
  const items = [];
  let next;
  do {
    const more = next == null ? "" : `&continue=${escape(next)}`;
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=1000${more}`, signal);
    for (const item of page.items) items.push(item);
    next = page.continue;
  } while (next != null);
  return items;
}

/** Gives the events of a stream (server-sent events) as name and data, until it ends. */
async function read(body, each) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let name = "message";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "") {
        each(name, data.length > 0 ? JSON.parse(data.join("\n")) : undefined);
        name = "message";
        data = [];
      } else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line.startsWith("event:")) name = line.slice(6).trim();
    }
  }
}

/**
 * Follows the stream for ever, and tells `said(state, why, until)`: `connecting`, `live`, `lost`,
 * `token`, `refused` or `paused`. `opened(signal)` is called as soon as there is a connection.
 */
export class Link {
  constructor({ said, opened, event, seconds }) {
    Object.assign(this, { said, opened, event, seconds });
    this.failures = 0;
    document.addEventListener("visibilitychange", () => this.#seen());
    addEventListener("online", () => this.retry());
  }

  /** Begins, or begins anew: with another token, another interval, or now instead of later. */
  retry() {
    clearTimeout(this.timer);
    this.current?.abort();
    this.current = new AbortController();
    this.#run(this.current.signal);
  }

  every(seconds) {
    this.seconds = seconds;
    this.retry();
  }

  async #run(signal) {
    this.said("connecting");
    try {
      const answer = await send(`/stream?counters=${this.seconds}`, { signal });
      this.said("live");
      this.failures = 0;
      this.#listen();
      this.opened(signal);
      await read(answer.body, (name, data) => {
        this.#listen();
        if (!signal.aborted) this.event(name, data);
      });
      throw new Error("the instance ended the connection");
    } catch (problem) {
      clearTimeout(this.silence);
      if (!signal.aborted || this.dead) this.#failed(problem);
    }
  }

  #failed(problem) {
    const silent = this.dead;
    this.dead = false;
    this.current.abort();
    if (problem.status === 401) return this.said("token");
    if (problem.status === 403) return this.said("refused", problem.message);
    this.failures += 1;
    const wait = problem.retry ?? Math.min(LONGEST_WAIT, 2 ** (this.failures - 1));
    const why = silent ? "the instance has fallen silent" : problem.status ? problem.message : "no connection";
    this.said("lost", why, Date.now() + 1000 * wait);
    this.timer = setTimeout(() => this.retry(), 1000 * wait);
  }

  /** Something was heard; after long silence the connection counts as dead. */
  #listen() {
    clearTimeout(this.silence);
    const longest = 2 * Math.min(this.seconds, KEEP_ALIVE) + 10;
    this.silence = setTimeout(() => {
      this.dead = true;
      this.current.abort();
    }, 1000 * longest);
  }

  #seen() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => {
        clearTimeout(this.timer);
        clearTimeout(this.silence);
        this.current.abort();
        this.paused = true;
        this.said("paused");
      }, HIDDEN);
    } else if (this.paused) {
      this.paused = false;
      this.retry();
    }
  }
}
