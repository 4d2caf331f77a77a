// The instance: its health, devices, peers, handovers and figures.

import { h, keyed, say, state } from "./dom.js";
import { count, moment, percent, plural, rate, span } from "./format.js";
import { model, rateOf } from "./model.js";
import { serviceAddress } from "./services.js";
import { Table } from "./table.js";

const PHASES = {
  handover: ["handover", "the old and the new table both count"],
  exceptions: ["exceptions", "recorded flows are looked up until the last one has ended"],
};

const word = (pick) => () => {
  const { node, update } = state();
  return { node, update: (row) => update(...pick(row)) };
};

const checks = () =>
  new Table({
    label: "Health",
    search: false,
    key: (row) => row.name,
    words: () => "",
    empty: "Nothing was looked at.",
    columns: [
      { name: "Looked at", text: (row) => row.name },
      { name: "State", make: word((row) => [row.state, row.state === "ok" ? "ok" : "bad"]) },
      { name: "What is wrong", grow: true, text: (row) => row.detail || "nothing" },
    ],
  });

const devices = () =>
  new Table({
    label: "Devices",
    search: false,
    key: (row) => row.name,
    words: () => "",
    empty: "No device is configured: no traffic is taken.",
    columns: [
      { name: "Device", mono: true, text: (row) => row.name },
      {
        name: "XDP",
        make: word((row) => {
          if (row.xdp == null) return ["not attached", "bad"];
          return [row.xdp, row.xdp === "generic" && row.wanted !== "generic" ? "warn" : "ok"];
        }),
      },
      { name: "Wanted", text: (row) => row.wanted },
      { name: "Index", numeric: true, text: (row) => (row.ifindex == null ? "–" : String(row.ifindex)) },
    ],
  });

const handovers = () =>
  new Table({
    label: "Handovers under way",
    key: (row) => row.frontend,
    words: (row) => `${row.frontend} ${row.service}`,
    empty: "None: the hash alone decides for every frontend.",
    columns: [
      {
        name: "Frontend",
        grow: true,
        make: (row) => ({
          node: h(
            "div",
            {},
            h("span", { class: "mono" }, row.frontend),
            h("a", { class: "sub", href: serviceAddress(row.service) }, row.service),
          ),
          update: () => {},
        }),
      },
      { name: "Phase", make: word((row) => [PHASES[row.phase]?.[0] ?? row.phase, "calm", PHASES[row.phase]?.[1]]) },
      { name: "Table", numeric: true, wide: true, text: (row) => plural(row.tableSize, "slot") },
      { name: "packets/s", numeric: true, text: (row) => rate(rateOf([row])?.packets) },
    ],
  });

function figures(status) {
  if (status == null) return [];
  const { arenaUsed, arenaSize, flows } = status;
  return [
    ["Version", status.version],
    ["Started", `${moment(status.started)}, ${span(Date.now() - new Date(status.started))} ago`],
    ["Services", count(status.services)],
    ["Frontends", `${count(status.frontends)}, ${count(status.refused)} refused`],
    ["Backends", `${count(status.backends)}, ${count(status.unreachable)} unreachable`],
    ["Arena of Maglev tables", `${count(arenaUsed)} of ${count(arenaSize)} words, ${percent(arenaSize ? arenaUsed / arenaSize : 0)}`],
    ["Recorded flows", `${count(flows.used)} of ${count(flows.size)}${flows.full ? ", full: the oldest give way" : ""}`],
    ["Found full", plural(flows.timesFull, "time")],
  ];
}

export function instance() {
  const tables = [checks(), devices(), handovers()];
  const list = h("dl", { class: "facts" });
  const peers = h("p", { class: "mono wrap" });
  const part = (title, node, note) => h("section", {}, h("h2", {}, title), note && h("p", { class: "muted" }, note), node);
  return {
    title: "Instance",
    node: h(
      "section",
      {},
      h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Instance")),
      part("Health", tables[0].node),
      part("Devices", tables[1].node),
      part(
        "Handovers",
        tables[2].node,
        "Frontends whose backends changed a short while ago. In handover the old and the new table both count; " +
          "then recorded flows are looked up until the last one has ended.",
      ),
      part("Figures", list),
      part("Peers", peers, "Whose tunnel packets are unwrapped here."),
    ),
    update() {
      const missing = model.status == null ? "Loading …" : null;
      tables[0].update(model.checks, missing);
      tables[1].update(model.devices, missing);
      tables[2].update(model.frontends.filter((one) => one.phase != null && one.phase !== "rest"), missing);
      keyed(list, figures(model.status), ([name]) => name, ([name]) => {
        const value = h("dd");
        return { node: h("div", {}, h("dt", {}, name), value), update: ([, text]) => say(value, text) };
      });
      say(peers, model.peers.map((one) => one.prefix).join("  ") || "None.");
    },
  };
}
