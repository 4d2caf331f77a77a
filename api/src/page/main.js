// Which view is shown, and what stands above all of them.

import { backends } from "./backends.js";
import { counters } from "./counters.js";
import { h, mark, say, spark } from "./dom.js";
import { events } from "./events.js";
import { NONE, byteRate, count, moment, percent, rate } from "./format.js";
import { instance } from "./instance.js";
import { Link, hasToken, setToken } from "./link.js";
import { begin, changed, model, onchange, take } from "./model.js";
import { service } from "./service.js";
import { services } from "./services.js";
import { trace } from "./trace.js";

const at = (id) => document.getElementById(id);
const VIEWS = { services, backends, counters, instance, events, trace };
const USUAL = 2;

let view;
let shown;

// --- Views ----------------------------------------------------------------------------------------

/** The view that the address names. */
function route(first = false) {
  const [path] = location.hash.slice(1).split("?");
  const [, name, rest] = /^\/([a-z]*)\/?(.*)$/.exec(path) ?? [null, "services", ""];
  let make = Object.hasOwn(VIEWS, name) ? VIEWS[name] : services;
  if (name === "service") make = () => service(decode(rest));
  view = make();
  at("main").replaceChildren(view.node);
  document.title = `${view.title} · xdp-lb`;
  for (const link of document.querySelectorAll("nav a")) {
    const is = link.getAttribute("href") === `#/${name === "service" ? "services" : name || "services"}`;
    mark(link, "aria-current", is ? "page" : null);
  }
  render();
  if (!first) {
    scrollTo(0, 0);
    view.node.querySelector("h1")?.focus({ preventScroll: true });
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", () => {
  if (location.hash === "#main") {
    history.replaceState(null, "", shown);
    at("main").focus();
    return;
  }
  shown = location.hash || "#/services";
  route();
});

// --- Above the views ------------------------------------------------------------------------------

/** A figure that stands above every view. */
function tile(name, { address, course } = {}) {
  const value = h("span", { class: "value" });
  const note = h("span", { class: "sub" });
  const line = course ? spark() : null;
  const node = h(address ? "a" : "div", { class: "tile", href: address }, h("span", { class: "name" }, name), value, note, line?.node);
  return {
    node,
    update(text, below, tone) {
      say(value, text);
      say(note, below ?? "");
      mark(node, "data-tone", tone);
      line?.update(model.course[course]);
    },
  };
}

const tiles = {
  packets: tile("Packets", { course: "packets" }),
  bytes: tile("Bytes", { course: "bytes" }),
  drops: tile("Drops", { course: "drops", address: "#/counters?then=drop" }),
  services: tile("Services", { address: "#/services" }),
  frontends: tile("Frontends", { address: "#/services?state=refused" }),
  backends: tile("Backends", { address: "#/backends?state=trouble" }),
  handovers: tile("Handovers", { address: "#/instance" }),
  flows: tile("Recorded flows"),
};
at("figures").append(...Object.values(tiles).map(({ node }) => node));

const perSecond = (value) => (value == null ? NONE : `${rate(value)}/s`);

function figures() {
  const { status, course } = model;
  at("figures").hidden = status == null;
  if (status == null) return;
  const now = (name) => course[name].at(-1);
  tiles.packets.update(perSecond(now("packets")), "forwarded");
  tiles.bytes.update(byteRate(now("bytes")), "forwarded");
  tiles.drops.update(perSecond(now("drops")), "packets", now("drops") > 0 ? "warn" : null);
  tiles.services.update(count(status.services), "declared");
  tiles.frontends.update(count(status.frontends), status.refused > 0 ? `${count(status.refused)} refused` : "all served", status.refused > 0 ? "bad" : null);
  const down = model.backends.filter((one) => one.state === "down" || one.state === "unreachable").length;
  tiles.backends.update(count(status.backends), down > 0 ? `${count(down)} in trouble` : "all well", down > 0 ? "bad" : null);
  tiles.handovers.update(count(status.handovers), "under way");
  const { used, size, full } = status.flows;
  tiles.flows.update(count(used), full ? "the table is full" : `${percent(size ? used / size : 0)} of the table`, full ? "bad" : null);
}

const WORDS = {
  connecting: ["connecting", "calm"],
  live: ["live", "ok"],
  lost: ["disconnected", "bad"],
  token: ["token needed", "warn"],
  refused: ["refused", "bad"],
  paused: ["paused", "calm"],
};

function head() {
  const { state, why, since, until } = model.link;
  const [text, tone] = WORDS[state];
  say(at("link"), text);
  mark(at("link"), "data-tone", tone);
  mark(document.body, "data-link", model.link.stale ? "lost" : state);
  at("forget").hidden = !hasToken();
  const asks = state === "token" && at("login").hidden;
  at("login").hidden = state !== "token";
  if (asks) at("token").focus();
  at("main").hidden = state === "token";
  const { status } = model;
  at("health").hidden = status == null;
  if (status != null) {
    say(at("version"), status.version);
    say(at("health"), status.health === "ok" ? "healthy" : status.health);
    mark(at("health"), "data-tone", status.health === "ok" ? "ok" : "bad");
  }
  banner(state, why, since, until);
}

function banner(state, why, since, until) {
  let text = "";
  if (state === "refused") text = `The instance refuses: ${why}.`;
  else if (model.link.stale && state !== "token") {
    const seconds = Math.max(0, Math.ceil(((until ?? 0) - Date.now()) / 1000));
    const next = seconds > 0 ? `trying again in ${seconds} s` : "trying again";
    const old = model.heard != null ? ` What is shown is of ${moment(model.heard)}.` : "";
    text = `Disconnected since ${moment(since)}: ${why ?? "no connection"}; ${next}.${old}`;
  } else if (state === "live" && model.stale) text = `The state could not be read: ${model.stale}. It is tried again.`;
  at("banner").hidden = text === "";
  // Read out once, not with every second that passes.
  mark(at("banner"), "role", model.link.stale ? null : "alert");
  say(at("banner"), text);
}

function render() {
  head();
  figures();
  view?.update();
}

// --- The connection -------------------------------------------------------------------------------

function said(state, why, until) {
  const { link } = model;
  // Disconnected from the first failure until something is heard again.
  if (state === "lost" && !link.stale) Object.assign(link, { stale: true, since: model.heard ?? Date.now() });
  if (state === "live" || state === "token" || state === "refused" || state === "paused") link.stale = false;
  if (state === "token") forgetAll();
  if (state === "token" && hasToken()) {
    setToken(null);
    say(at("wrong"), "The instance does not know this token.");
  }
  link.state = link.stale && state === "connecting" ? "lost" : state;
  if (why != null) link.why = why;
  link.until = until;
  changed();
}

/** What was shown was shown to somebody with a token. */
function forgetAll() {
  model.services.clear();
  model.of.clear();
  Object.assign(model, { status: null, frontends: [], backends: [], devices: [], peers: [], checks: [], events: [], heard: null });
}

const seconds = Number(sessionStorage.getItem("xdp-lb-every")) || USUAL;
at("every").value = String(seconds);
if (at("every").value === "") at("every").value = String(USUAL);

const link = new Link({
  said,
  seconds: Number(at("every").value),
  opened: (now) => {
    model.heard = Date.now();
    begin(now);
  },
  event: take,
});

at("every").addEventListener("change", () => {
  sessionStorage.setItem("xdp-lb-every", at("every").value);
  link.every(Number(at("every").value));
});

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  say(at("wrong"), "");
  setToken(at("token").value.trim());
  at("token").value = "";
  link.retry();
});

at("forget").addEventListener("click", () => {
  setToken(null);
  forgetAll();
  link.retry();
});

onchange(render);
shown = location.hash || "#/services";
route(true);
link.retry();
// Times that pass: since when, and until the next try.
setInterval(() => {
  if (model.link.state !== "live" || view.title === "Instance") changed();
}, 1000);
