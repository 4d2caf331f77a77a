// What is known of the instance, and the rates that follow from its counters.

import { all, get } from "./link.js";
import { REASONS } from "./reasons.js";

const EVENTS = 1000;
const COURSE = 60;
// The whole state is read again at most so often: this many times as long as it took last time.
const SHARE = 10;

const key = (counter) => (counter.id == null ? counter.name : `${counter.id} ${counter.name}`);

/** What a counter of a backend is known by. */
export const backendKey = (backend) => (backend.id == null ? null : `${backend.id} ${backend.backend}`);

/** Where a service's backend is found. */
export const placeOf = (service, backend) => `${service}\0${backend}`;

export const model = {
  link: { state: "connecting", since: null, why: null, until: null },
  /** When the counters were read last, in milliseconds */
  counted: null,
  /** When something was heard last, in milliseconds */
  heard: null,
  services: new Map(),
  frontends: [],
  backends: [],
  /** By service: `{ frontends, backends }` */
  of: new Map(),
  devices: [],
  peers: [],
  checks: [],
  status: null,
  events: [],
  /** Counters as they were read last, by kind and key */
  totals: { frontends: new Map(), backends: new Map(), reasons: new Map() },
  /** The same a second; absent where it is not known */
  rates: { frontends: new Map(), backends: new Map(), reasons: new Map() },
  /** The last so many sums of rates */
  course: { packets: [], bytes: [], drops: [] },
  /** Why the last reading of the state failed */
  stale: null,
};

let listener = () => {};
let planned = false;

export function onchange(call) {
  listener = call;
}

/** Tells, once for all that changes before the next picture. */
export function changed() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    listener();
  });
}

// --- The stream -----------------------------------------------------------------------------------

let live;
let round = 0;
let ticks = 0;
let sampled = null;

/** A new connection: the stream begins with all services, and the daemon may be another. */
export function begin(signal) {
  live = signal;
  round += 1;
  ticks = 0;
  sampled = null;
  for (const rates of Object.values(model.rates)) rates.clear();
  model.stale = null;
  clearTimeout(timer);
  timer = null;
  reload(signal);
  lately(signal);
}

/** Reads what happened lately. */
async function lately(signal) {
  since = [];
  const events = await get("/events", signal).catch(() => null);
  if (events == null || signal !== live) return;
  const last = events.at(-1)?.number ?? 0;
  model.events = [...events, ...since.filter((one) => one.number > last)];
  changed();
}

/** Takes in an event of the stream. */
export function take(name, data) {
  model.heard = Date.now();
  if (name === "service") {
    model.services.set(data.name, { round, view: data });
  } else if (name === "removed") {
    model.services.delete(data);
  } else if (name === "state") {
    model.status = data;
    later();
  } else if (name === "event") {
    happened(data);
  } else if (name === "lost") {
    lately(live);
  } else if (name === "counters") {
    sample(data);
  }
  changed();
}

let since = [];

function happened(event) {
  since.push(event);
  if (since.length > EVENTS) since.shift();
  const last = model.events.at(-1);
  if (last && event.number <= last.number) {
    if (model.events.some((one) => one.number === event.number)) return;
  }
  model.events.push(event);
  if (model.events.length > EVENTS) model.events.splice(0, model.events.length - EVENTS);
}

function sample(counters) {
  // All services were sent before the second set of counters: what is older is gone.
  ticks += 1;
  if (ticks === 2) {
    for (const [name, one] of model.services) if (one.round !== round) model.services.delete(name);
  }
  model.counted = Date.now();
  const now = performance.now();
  const seconds = sampled == null ? null : (now - sampled) / 1000;
  sampled = now;
  for (const kind of ["frontends", "backends", "reasons"]) {
    const before = model.totals[kind];
    const after = new Map();
    const rates = new Map();
    for (const one of counters[kind]) {
      const name = kind === "frontends" ? one.name : key(one);
      after.set(name, one);
      // A reason is there from its first packet on.
      const old = before.get(name) ?? (kind === "reasons" ? { packets: 0, bytes: 0 } : null);
      if (seconds == null || old == null || one.packets < old.packets) continue;
      rates.set(name, {
        packets: (one.packets - old.packets) / seconds,
        bytes: (one.bytes - old.bytes) / seconds,
      });
    }
    model.totals[kind] = after;
    model.rates[kind] = rates;
  }
  if (seconds != null) {
    add("packets", sum(model.rates.frontends.values(), "packets"));
    add("bytes", sum(model.rates.frontends.values(), "bytes"));
    add("drops", drops());
  }
}

function add(name, value) {
  const course = model.course[name];
  course.push(value);
  if (course.length > COURSE) course.shift();
}

function sum(rates, unit) {
  let total = 0;
  for (const rate of rates) total += rate[unit];
  return total;
}

function drops() {
  let total = 0;
  for (const [name, rate] of model.rates.reasons) {
    if (REASONS.get(name)?.[0] === "drop") total += rate.packets;
  }
  return total;
}

/** The rate of some frontends together; null where none is known. */
export function rateOf(frontends) {
  let total = null;
  for (const one of frontends) {
    const rate = model.rates.frontends.get(one.frontend);
    if (rate == null) continue;
    total ??= { packets: 0, bytes: 0 };
    total.packets += rate.packets;
    total.bytes += rate.bytes;
  }
  return total;
}

// --- The state ------------------------------------------------------------------------------------

let cost = 0;
let loading = false;
let again = false;
let timer;

/** Reads the state again soon, once for many changes. */
function later() {
  if (loading) again = true;
  else if (timer == null) {
    timer = setTimeout(() => {
      timer = null;
      reload(live);
    }, Math.max(500, SHARE * cost));
  }
}

async function reload(signal) {
  if (signal.aborted) return;
  loading = true;
  again = false;
  const start = performance.now();
  try {
    const paths = ["/devices", "/peers", "/health", "/status"];
    const [frontends, backends, devices, peers, health, status] = await Promise.all([
      all("/frontends", signal),
      all("/backends", signal),
      ...paths.map((path) => get(path, signal)),
    ]);
    if (signal !== live) return;
    Object.assign(model, { frontends, backends, devices, peers, checks: health.checks, status });
    group();
    model.stale = null;
  } catch (problem) {
    if (signal !== live) return;
    if (!signal.aborted) {
      model.stale = problem.message;
      again = true;
    }
  }
  loading = false;
  cost = performance.now() - start;
  if (again) later();
  changed();
}

/** Reads one service's part of the state at once. */
export async function refresh(name) {
  const path = encodeURIComponent(name);
  const [frontends, backends] = await Promise.all([
    all(`/frontends?service=${path}`),
    all(`/services/${path}/backends`),
  ]);
  const others = (list) => list.filter((one) => one.service !== name);
  model.frontends = [...others(model.frontends), ...frontends];
  model.backends = [...others(model.backends), ...backends];
  group();
  changed();
}

function group() {
  const of = new Map();
  const at = (name) => {
    if (!of.has(name)) of.set(name, { frontends: [], backends: [] });
    return of.get(name);
  };
  for (const one of model.frontends) at(one.service).frontends.push(one);
  for (const one of model.backends) at(one.service).backends.push(one);
  model.of = of;
  // Each backend's counters, of all frontends of its service.
  ids.clear();
  users.clear();
  for (const frontend of model.frontends) {
    for (const backend of frontend.backends) {
      const name = backendKey(backend);
      if (name == null) continue;
      if (!users.has(name)) users.set(name, new Set());
      users.get(name).add(frontend.service);
    }
  }
  for (const [service, { frontends, backends }] of of) {
    const names = new Map();
    for (const frontend of frontends) {
      for (const backend of frontend.backends) {
        const name = backendKey(backend);
        if (name == null) continue;
        // Declared with its port, or without: then the frontend's.
        for (const as of [backend.backend, hostOf(backend.backend)]) {
          if (!names.has(as)) names.set(as, new Set());
          names.get(as).add(name);
        }
      }
    }
    for (const one of backends) ids.set(placeOf(service, one.backend), names.get(one.backend) ?? new Set());
  }
}

const ids = new Map();
const users = new Map();

/** The address of an address and port. */
export function hostOf(socket) {
  return socket.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
}

/** The names of a backend's counters. */
export const countersOf = (service, backend) => ids.get(placeOf(service, backend)) ?? new Set();

/** The services that a counter of a backend counts for. */
export const usersOf = (name) => users.get(name) ?? new Set();

/** The rate of a service's backend; null where none is known. */
export function backendRate(service, backend) {
  let total = null;
  for (const name of countersOf(service, backend)) {
    const rate = model.rates.backends.get(name);
    if (rate == null) continue;
    total ??= { packets: 0, bytes: 0 };
    total.packets += rate.packets;
    total.bytes += rate.bytes;
  }
  return total;
}
