// All services.

import { h, mark, say, state } from "./dom.js";
import { byteRate, count, plural, rate } from "./format.js";
import { model, rateOf } from "./model.js";
import { Table } from "./table.js";

const NONE = { frontends: [], backends: [] };

export const serviceAddress = (name) => `#/service/${encodeURIComponent(name)}`;

const BAD = new Set(["down", "unreachable"]);

/** What stands out of a service, the gravest first: text and tone. */
export function condition({ frontends, backends, pending }) {
  if (pending) return ["pending", "calm"];
  if (frontends.every((one) => one.state === "elsewhere")) return ["elsewhere", "calm"];
  if (frontends.some((one) => one.state === "refused")) return ["refused", "bad"];
  const bad = backends.filter((one) => BAD.has(one.state)).length;
  if (bad > 0 && bad === backends.length) return ["no backend", "bad"];
  if (backends.length === 0) return ["no backend", "warn"];
  if (bad > 0) return [`${count(bad)} of ${count(backends.length)} in trouble`, "warn"];
  if (frontends.some((one) => one.state === "pending")) return ["pending", "calm"];
  if (frontends.some((one) => one.phase === "handover")) return ["handover", "calm"];
  return ["served", "ok"];
}

function rows() {
  const list = [];
  for (const [name, { view }] of model.services) {
    const { frontends, backends } = model.of.get(name) ?? NONE;
    const pending = frontends.length === 0;
    const [text, tone] = condition({ frontends, backends, pending });
    list.push({ name, view, frontends, backends, text, tone, rate: rateOf(frontends) });
  }
  return list.sort((a, b) => (a.name < b.name ? -1 : 1));
}

function words({ name, frontends, backends }) {
  return [name, ...frontends.map((one) => one.frontend), ...backends.map((one) => one.backend)].join(" ");
}

/** How many backends are in which state. */
export function tally(backends) {
  const numbers = new Map();
  for (const { state: name } of backends) numbers.set(name, (numbers.get(name) ?? 0) + 1);
  const order = ["active", "draining", "terminating", "drained", "down", "unreachable"];
  return order.filter((name) => numbers.has(name)).map((name) => `${numbers.get(name)} ${name}`).join(", ");
}

const GRAVE = { bad: 0, warn: 1, calm: 2, ok: 3 };

const columns = [
  {
    name: "Service",
    grow: true,
    sort: (row) => row.name,
    make: (row) => {
      const where = h("span", { class: "sub mono" });
      const link = h("a", { href: serviceAddress(row.name) }, row.name);
      return {
        node: h("div", {}, link, where),
        update: ({ frontends }) => {
          const [first, ...more] = frontends;
          say(where, first == null ? "" : first.frontend + (more.length > 0 ? ` and ${more.length} more` : ""));
        },
      };
    },
  },
  {
    name: "State",
    sort: (row) => GRAVE[row.tone],
    make: () => {
      const { node, update } = state();
      return { node, update: (row) => update(row.text, row.tone) };
    },
  },
  { name: "Backends", wide: true, sort: (row) => row.backends.length, text: (row) => tally(row.backends) || "none" },
  { name: "Mode", wide: true, sort: (row) => row.frontends[0]?.mode, text: (row) => row.frontends[0]?.mode ?? "" },
  { name: "Owner", wide: true, sort: (row) => row.view.owner, text: (row) => row.view.owner },
  { name: "packets/s", numeric: true, sort: (row) => row.rate?.packets, text: (row) => rate(row.rate?.packets) },
  { name: "bytes/s", numeric: true, wide: true, sort: (row) => row.rate?.bytes, text: (row) => byteRate(row.rate?.bytes) },
];

const filters = [
  {
    name: "state",
    label: "State",
    options: [["", "all"], ["trouble", "in trouble"], ["handover", "in handover"], ["refused", "refused"]],
    keep: (row, value) => {
      if (value === "trouble") return row.tone === "bad" || row.tone === "warn";
      if (value === "refused") return row.frontends.some((one) => one.state === "refused");
      return row.frontends.some((one) => one.phase != null && one.phase !== "rest");
    },
  },
  {
    name: "owner",
    label: "Owner",
    options: [["", "all"], ["file", "file"], ["api", "api"], ["kubernetes", "kubernetes"]],
    keep: (row, value) => row.view.owner === value,
  },
];

export function services() {
  const table = new Table({
    label: "Services",
    address: "#/services",
    columns,
    filters,
    words,
    key: (row) => row.name,
    sort: "Service",
    empty: "No service is declared. Write one into the configuration file, or use xdp-lb service apply.",
  });
  const title = h("h1", { tabindex: "-1" }, "Services");
  const number = h("span", { class: "muted" });
  return {
    title: "Services",
    node: h("section", {}, h("div", { class: "head" }, title, number), table.node),
    update() {
      say(number, model.status == null ? "" : plural(model.services.size, "service"));
      mark(table.node, "aria-busy", model.status == null ? "true" : null);
      table.update(rows(), model.status == null ? "Loading …" : null);
    },
  };
}
