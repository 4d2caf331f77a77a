// All backends of all services.

import { h, state } from "./dom.js";
import { byteRate, count, moment, plural, rate } from "./format.js";
import { backendRate, model, placeOf } from "./model.js";
import { serviceAddress } from "./services.js";
import { Table } from "./table.js";

const TONES = { active: "ok", draining: "calm", terminating: "calm", drained: "calm", down: "bad", unreachable: "bad" };
const GRAVE = { unreachable: 0, down: 1, draining: 2, terminating: 2, drained: 3, active: 4 };

/** What is in the way of a backend, or worth to know. */
export function reason({ state: what, reason: why, health, flows, removing }) {
  const parts = [];
  if (why) parts.push(why);
  if (health?.error) {
    parts.push(health.error + (health.since ? `, since ${moment(health.since)}` : ""));
  }
  if (health?.note) parts.push(health.note);
  if (what === "draining" && flows > 0) parts.push(`${plural(flows, "recorded flow")} left`);
  if (removing) parts.push("removed once its last flow is gone");
  return parts.join("; ");
}

/** The columns that every list of backends has. */
export const stateColumn = {
  name: "State",
  sort: (row) => GRAVE[row.view.state],
  make: () => {
    const word = state();
    const why = h("span", { class: "sub" });
    return {
      node: h("div", {}, word.node, why),
      update: ({ view }) => {
        word.update(view.state, TONES[view.state] ?? "calm");
        const text = reason(view);
        if (why.textContent !== text) why.textContent = text;
      },
    };
  },
};

export const rateColumns = [
  { name: "packets/s", numeric: true, sort: (row) => row.rate?.packets, text: (row) => rate(row.rate?.packets) },
  { name: "bytes/s", numeric: true, wider: true, sort: (row) => row.rate?.bytes, text: (row) => byteRate(row.rate?.bytes) },
];

export const flowsColumn = {
  name: "Recorded flows",
  numeric: true,
  wider: true,
  sort: (row) => row.view.flows,
  text: (row) => count(row.view.flows),
};

const columns = [
  {
    name: "Backend",
    sort: (row) => row.view.backend,
    grow: true,
    make: ({ view }) => ({
      node: h(
        "div",
        {},
        h("span", { class: "mono" }, view.backend),
        h("a", { class: "sub", href: serviceAddress(view.service) }, view.service),
      ),
      update: () => {},
    }),
  },
  stateColumn,
  { name: "Weight", numeric: true, wider: true, sort: (row) => row.view.weight, text: (row) => count(row.view.weight) },
  flowsColumn,
  ...rateColumns,
];

const filters = [
  {
    name: "state",
    label: "State",
    options: [["", "all"], ["trouble", "in trouble"], ...Object.keys(TONES).map((one) => [one, one])],
    keep: ({ view }, value) => (value === "trouble" ? TONES[view.state] === "bad" : view.state === value),
  },
];

export function backends() {
  const table = new Table({
    label: "Backends",
    address: "#/backends",
    columns,
    filters,
    key: ({ view }) => placeOf(view.service, view.backend),
    words: ({ view }) => `${view.backend} ${view.service} ${reason(view)}`,
    empty: "No service has a backend.",
  });
  return {
    title: "Backends",
    node: h("section", {}, h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Backends")), table.node),
    update() {
      const rows = model.backends.map((view) => ({ view, rate: backendRate(view.service, view.backend) }));
      table.update(rows, model.status == null ? "Loading …" : null);
    },
  };
}
