// Packets that were not simply forwarded, by reason.

import { h, state } from "./dom.js";
import { bytes, count, rate } from "./format.js";
import { model } from "./model.js";
import { REASONS, THEN } from "./reasons.js";
import { Table } from "./table.js";

const TONES = { drop: "bad", answer: "warn", pass: "calm", deliver: "ok", forward: "ok" };
const GRAVE = { drop: 0, answer: 1, pass: 2, deliver: 3, forward: 4 };

const columns = [
  {
    name: "Reason",
    grow: true,
    sort: (row) => row.name,
    make: (row) => ({
      node: h("div", {}, h("span", { class: "mono" }, row.name), h("span", { class: "sub" }, row.meaning)),
      update: () => {},
    }),
  },
  {
    name: "Then",
    sort: (row) => GRAVE[row.then],
    make: () => {
      const { node, update } = state();
      const tone = (row) => (row.packets === 0 ? "calm" : TONES[row.then]);
      return { node, update: (row) => update(THEN[row.then] ?? row.then, tone(row)) };
    },
  },
  { name: "packets/s", numeric: true, sort: (row) => row.rate?.packets, text: (row) => rate(row.rate?.packets) },
  { name: "Packets", numeric: true, wide: true, sort: (row) => row.packets, text: (row) => count(row.packets) },
  { name: "Bytes", numeric: true, wide: true, sort: (row) => row.bytes, text: (row) => bytes(row.bytes) },
];

const filters = [
  {
    name: "then",
    label: "Then",
    options: [["", "all"], ...Object.entries(THEN)],
    keep: (row, value) => row.then === value,
  },
  {
    name: "seen",
    label: "Show",
    options: [["", "what happened"], ["all", "every reason"]],
    // Which rows there are is decided below.
    keep: () => true,
  },
];

function rows(every) {
  const names = new Set(model.totals.reasons.keys());
  if (every) for (const name of REASONS.keys()) names.add(name);
  return [...names].map((name) => {
    const [then, meaning] = REASONS.get(name) ?? ["", "This page does not know it: reload it"];
    const { packets, bytes: size } = model.totals.reasons.get(name) ?? { packets: 0, bytes: 0 };
    return { name, then, meaning, packets, bytes: size, rate: model.rates.reasons.get(name) };
  });
}

export function counters() {
  const table = new Table({
    label: "Counters by reason",
    address: "#/counters",
    columns,
    filters,
    key: (row) => row.name,
    words: (row) => `${row.name} ${row.meaning} ${THEN[row.then]}`,
    sort: "Then",
    empty: "Every packet was simply forwarded so far.",
  });
  const note = h("p", { class: "muted" }, "Packets that were not simply forwarded, by reason, since the data path was loaded.");
  return {
    title: "Counters",
    node: h("section", {}, h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Counters")), note, table.node),
    update() {
      table.update(rows(table.chosen.seen === "all"), model.totals.frontends.size + model.totals.reasons.size === 0 && model.heard == null ? "Loading …" : null);
    },
  };
}
