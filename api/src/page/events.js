// What happened lately.

import { h, state } from "./dom.js";
import { moment } from "./format.js";
import { model } from "./model.js";
import { Table } from "./table.js";

const KINDS = {
  started: ["started", "calm"],
  reloaded: ["reloaded", "calm"],
  changed: ["changed", "calm"],
  attached: ["attached", "ok"],
  reachable: ["reachable", "ok"],
  backendUp: ["backend up", "ok"],
  clusterReached: ["cluster reached", "ok"],
  clusterFinding: ["cluster finding", "warn"],
  clusterLost: ["cluster lost", "bad"],
  repaired: ["repaired", "warn"],
  detached: ["detached", "bad"],
  unreachable: ["unreachable", "bad"],
  backendDown: ["backend down", "bad"],
  refused: ["refused", "bad"],
  frontendRefused: ["frontend refused", "bad"],
  failed: ["failed", "bad"],
};

const kind = (event) => KINDS[event.kind] ?? [String(event.kind), "calm"];

const columns = [
  { name: "Time", text: (event) => moment(event.time), numeric: true },
  {
    name: "Kind",
    make: () => {
      const { node, update } = state();
      return { node, update: (event) => update(...kind(event)) };
    },
  },
  { name: "What happened", grow: true, text: (event) => event.message },
];

const filters = [
  {
    name: "kind",
    label: "Kind",
    options: [["", "all"], ["trouble", "trouble"], ...Object.entries(KINDS).map(([name, [text]]) => [name, text])],
    keep: (event, value) => (value === "trouble" ? kind(event)[1] === "bad" : event.kind === value),
  },
];

export function events() {
  const table = new Table({
    label: "Events, the newest first",
    address: "#/events",
    columns,
    filters,
    key: (event) => event.number,
    words: (event) => `${event.message} ${kind(event)[0]}`,
    empty: "Nothing has happened yet.",
  });
  table.node.classList.add("events");
  return {
    title: "Events",
    node: h("section", {}, h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Events")), table.node),
    update() {
      table.update(model.events.toReversed(), model.heard == null ? "Loading …" : null);
    },
  };
}
