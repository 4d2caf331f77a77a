// One service: its frontends, its backends, and how traffic spreads over them.

import { flowsColumn, rateColumns, stateColumn } from "./backends.js";
import { h, mark, say, state } from "./dom.js";
import { askDrain } from "./drain.js";
import { byteRate, count, percent, plural, rate, span } from "./format.js";
import { escape, get } from "./link.js";
import {
  backendKey, backendRate, countersOf, hostOf, model, placeOf, refresh, usersOf,
} from "./model.js";
import { condition } from "./services.js";
import { Table } from "./table.js";

// Tables are asked for of so many frontends at most, and again after so long.
const TABLES = 16;
const AGAIN = 30_000;
const TONES = { served: "ok", pending: "calm", elsewhere: "calm", refused: "bad" };

const frontendColumns = [
  {
    name: "Frontend",
    grow: true,
    sort: (row) => row.frontend,
    make: (row) => ({
      node: h("div", {}, h("span", { class: "mono" }, row.frontend), h("span", { class: "sub" }, row.type)),
      update: () => {},
    }),
  },
  {
    name: "State",
    make: () => {
      const word = state();
      const why = h("span", { class: "sub" });
      return {
        node: h("div", {}, word.node, why),
        update: (row) => {
          const moving = row.state === "served" && row.phase != null && row.phase !== "rest";
          word.update(moving ? row.phase : row.state, moving ? "calm" : TONES[row.state]);
          say(why, row.reason ?? "");
        },
      };
    },
  },
  { name: "Maglev table", numeric: true, wide: true, text: (row) => (row.tableSize ? plural(row.tableSize, "slot") : "–") },
  { name: "packets/s", numeric: true, sort: (row) => model.rates.frontends.get(row.frontend)?.packets, text: (row) => rate(model.rates.frontends.get(row.frontend)?.packets) },
  { name: "bytes/s", numeric: true, wide: true, sort: (row) => model.rates.frontends.get(row.frontend)?.bytes, text: (row) => byteRate(model.rates.frontends.get(row.frontend)?.bytes) },
];

/** A bar of the measured share, with a mark where the table's share is. */
function bar() {
  const fill = h("span", { class: "fill" });
  const tick = h("span", { class: "tick" });
  const node = h("div", { class: "bar", "aria-hidden": "true" }, fill, tick);
  return {
    node,
    update({ wanted, measured, most }) {
      const of = (share) => `${Math.min(100, (100 * (share ?? 0)) / most)}%`;
      fill.style.width = of(measured);
      tick.style.left = of(wanted);
      tick.hidden = wanted == null;
    },
  };
}

function backendColumns(service) {
  const change = ({ view }) => {
    const label = view.drained ? "Undrain" : "Drain";
    return h("button", { type: "button", class: "small", "aria-label": `${label} ${view.backend}` }, label);
  };
  const button = (row) => {
    let now = row.view;
    const node = change(row);
    node.addEventListener("click", () => askDrain(now, () => refresh(service)));
    return {
      node,
      update: ({ view }) => {
        now = view;
        const label = view.drained ? "Undrain" : "Drain";
        say(node, label);
        mark(node, "aria-label", `${label} ${view.backend}`);
      },
    };
  };
  return [
    {
      name: "Backend",
      address: true,
      sort: (row) => row.view.backend,
      make: (row) => {
        const below = button(row);
        const node = h("div", {}, h("span", { class: "mono" }, row.view.backend), h("div", { class: "narrow" }, below.node));
        return { node, update: below.update };
      },
    },
    stateColumn,
    { name: "Weight", numeric: true, wider: true, sort: (row) => row.view.weight, text: (row) => count(row.view.weight) },
    flowsColumn,
    ...rateColumns,
    { name: "Maglev share", numeric: true, wide: true, sort: (row) => row.wanted, text: (row) => percent(row.wanted) },
    {
      name: "Measured",
      numeric: true,
      sort: (row) => row.measured,
      make: () => {
        const number = h("span");
        const picture = bar();
        return {
          node: h("div", { class: "share" }, number, picture.node),
          update: (row) => {
            say(number, percent(row.measured));
            picture.update(row);
          },
        };
      },
    },
    { name: "Change", wide: true, make: button },
  ];
}

/** Packets since a moment, by counter. */
class Window {
  begin() {
    this.since = null;
    this.bases = new Map();
  }

  /** Packets of a counter in the window; none where it was not there before. */
  packets(kind, name) {
    const total = model.totals[kind].get(name)?.packets;
    if (total == null) return 0;
    this.since ??= model.counted;
    const base = this.bases.get(kind + name);
    if (base == null || total < base) this.bases.set(kind + name, total);
    return total - Math.min(total, this.bases.get(kind + name));
  }
}

export function service(name) {
  const title = h("h1", { tabindex: "-1" }, name);
  const word = state();
  const facts = h("span", { class: "muted" });
  const frontends = new Table({
    label: `Frontends of ${name}`, search: false, columns: frontendColumns, key: (row) => row.frontend,
    words: () => "", empty: "It has no frontend here: no address of this node matches.",
  });
  const backends = new Table({
    label: `Backends of ${name}`, search: false, columns: backendColumns(name),
    key: ({ view }) => placeOf(view.service, view.backend), words: () => "",
    empty: "It has no backend.",
  });
  const window = new Window();
  window.begin();
  const spread = h("p", { class: "muted" });
  const shared = h("p", { class: "muted" });
  const anew = h("button", { type: "button", class: "small", onclick: () => { window.begin(); view.update(); } }, "Measure anew");
  const declared = h("pre", { tabindex: "0" });
  const missing = h("p", { class: "note" });
  const body = h(
    "div", {},
    h("section", {}, h("h2", {}, "Frontends"), frontends.node),
    h("section", {}, h("div", { class: "head" }, h("h2", {}, "Backends"), anew), spread, shared, backends.node),
    h("section", {}, h("details", {}, h("summary", {}, "As declared"), declared)),
  );

  const tables = new Map();
  /** Asks for the tables that may have changed. */
  function follow(of) {
    const weights = JSON.stringify(of.backends.map((one) => [one.backend, one.weight, one.state, one.drained]));
    for (const one of of.frontends.filter((each) => each.tableSize > 0).slice(0, TABLES)) {
      const sign = JSON.stringify([one.tableSize, one.phase, one.backends]) + weights;
      const known = tables.get(one.frontend);
      if (known && (known.loading || (known.sign === sign && Date.now() - known.at < AGAIN))) continue;
      const entry = { sign, at: Date.now(), loading: true, shares: known?.shares };
      tables.set(one.frontend, entry);
      get(`/maglev/${escape(one.frontend)}`).then((table) => {
        entry.shares = shares(table);
        entry.loading = false;
        view.update();
      }, () => { entry.loading = false; });
    }
  }

  /** What a backend is to get: of each frontend's table, by what the frontend took. */
  function wanted(of, backend, took) {
    const all = of.frontends.filter((one) => tables.get(one.frontend)?.shares);
    if (all.length === 0) return null;
    const total = all.reduce((sum, one) => sum + took.get(one.frontend), 0);
    let share = 0;
    for (const one of all) {
      const weight = total > 0 ? took.get(one.frontend) / total : 1 / all.length;
      const { shares: parts } = tables.get(one.frontend);
      const mine = one.backends.filter((each) => each.backend === backend || hostOf(each.backend) === backend);
      share += weight * mine.reduce((sum, each) => sum + (parts.get(each.backend) ?? 0), 0);
    }
    return share;
  }

  function rows(of) {
    const took = new Map(of.frontends.map((one) => [one.frontend, window.packets("frontends", one.frontend)]));
    const list = of.backends.map((each) => {
      let packets = 0;
      for (const id of countersOf(name, each.backend)) packets += window.packets("backends", id);
      const share = wanted(of, each.backend, took);
      return { view: each, packets, wanted: share, rate: backendRate(name, each.backend) };
    });
    const total = list.reduce((sum, row) => sum + row.packets, 0);
    let most = 0;
    for (const row of list) {
      row.measured = total > 0 ? row.packets / total : null;
      most = Math.max(most, row.measured ?? 0, row.wanted ?? 0);
    }
    for (const row of list) row.most = most || 1;
    return [list, total];
  }

  const view = {
    title: name,
    node: h(
      "section", {},
      h("p", { class: "back" }, h("a", { href: "#/services" }, "All services")),
      h("div", { class: "head" }, title, word.node, facts), missing, body,
    ),
    update() {
      const known = model.services.get(name)?.view;
      const of = model.of.get(name) ?? { frontends: [], backends: [] };
      body.hidden = known == null && of.frontends.length === 0;
      word.node.hidden = body.hidden;
      say(missing, body.hidden ? (model.status == null ? "Loading …" : "There is no service of this name.") : "");
      if (body.hidden) return;
      word.update(...condition({ ...of, pending: of.frontends.length === 0 }));
      const first = of.frontends[0];
      say(facts, [first?.mode && `mode ${first.mode}`, known && `owner ${known.owner}`].filter(Boolean).join(" · "));
      follow(of);
      const [list, total] = rows(of);
      frontends.update(of.frontends);
      backends.update(list);
      const time = span(model.counted - (window.since ?? model.counted));
      say(spread, total > 0
        ? `Measured: the share of ${plural(total, "packet")} in ${time}. The mark is the Maglev share: of new flows, which need not be of equal weight.`
        : `Measured: no packet yet in ${time}. The mark is the Maglev share of new flows.`);
      const others = new Set();
      for (const one of of.frontends) {
        for (const each of one.backends) {
          const id = backendKey(each);
          if (id != null) for (const other of usersOf(id)) if (other !== name) others.add(other);
        }
      }
      const names = [...others];
      shared.hidden = names.length === 0;
      say(shared, `Its backends also serve, and are counted together with: ${names.slice(0, 5).join(", ")}${names.length > 5 ? ` and ${names.length - 5} more` : ""}.`);
      say(declared, known == null ? "" : JSON.stringify(known.service, null, 2));
    },
  };
  return view;
}

/** The share of slots of each backend. */
function shares({ backends, slots }) {
  const numbers = new Array(backends.length).fill(0);
  for (const slot of slots) if (slot < numbers.length) numbers[slot] += 1;
  return new Map(backends.map((backend, at) => [backend, slots.length ? numbers[at] / slots.length : 0]));
}
