// Tables that are searched, sorted and paged; only one page of rows is ever in the document.

import { choice, h, keyed, mark, say } from "./dom.js";
import { count } from "./format.js";

const SIZE = 50;
const order = new Intl.Collator("en", { numeric: true });

/**
 * A table whose choices are in the address. `columns` have `name`, and `text(row)` or
 * `make(row) → { node, update(row) }`; `sort(row)`, `numeric`, `mono`, `address`; `wide` and `wider` are not on narrow screens.
 * `filters` have `name`, `label`, `options` and `keep(row, value)`.
 */
export class Table {
  constructor({ label, columns, filters = [], key, words, empty, sort, address, search = true }) {
    Object.assign(this, { columns, filters, key, words, empty, address, usual: sort });
    this.rows = [];
    this.order = null;
    this.read();
    this.body = h("tbody");
    this.note = h("p", { class: "note", role: "status" });
    this.pages = h("span", { class: "muted" });
    this.back = h("button", { type: "button", onclick: () => this.turn(-1) }, "Previous");
    this.on = h("button", { type: "button", onclick: () => this.turn(1) }, "Next");
    this.pager = h("div", { class: "pager", hidden: true }, this.back, this.pages, this.on);
    this.search = h("input", {
      type: "search",
      value: this.q,
      spellcheck: "false",
      autocomplete: "off",
      oninput: () => this.set({ q: this.search.value, page: 0 }),
    });
    this.heads = columns.map((column) => this.head(column));
    const tools = filters.map(({ name, label: text, options }) =>
      choice(text, options, this.chosen[name], (value) => {
        this.chosen[name] = value;
        this.set({ page: 0 });
      }),
    );
    if (search) tools.unshift(h("label", { class: "choice search" }, h("span", {}, "Search"), this.search));
    this.bar = h("div", { class: "tools" }, tools, h("span", { class: "grow" }), this.pager);
    this.node = h(
      "div",
      { class: "listing" },
      this.bar,
      h("table", {}, h("caption", { class: "hidden" }, label), h("thead", {}, h("tr", {}, this.heads)), this.body),
      this.note,
    );
  }

  /** Takes the choices from the address. */
  read() {
    const query = new URLSearchParams(this.address ? location.hash.split("?")[1] : "");
    this.q = query.get("q") ?? "";
    this.page = Math.max(0, (Number.parseInt(query.get("page"), 10) || 1) - 1);
    this.sorted = query.get("sort") ?? this.usual ?? "";
    this.chosen = {};
    for (const { name, options } of this.filters) {
      const value = query.get(name);
      this.chosen[name] = options.some(([one]) => one === value) ? value : "";
    }
  }

  /** Puts the choices into the address, so that it can be sent to others. */
  set(change) {
    Object.assign(this, change);
    this.order = null;
    if (this.address) {
      const query = new URLSearchParams();
      if (this.q) query.set("q", this.q);
      for (const [name, value] of Object.entries(this.chosen)) if (value) query.set(name, value);
      if (this.sorted !== (this.usual ?? "")) query.set("sort", this.sorted);
      if (this.page > 0) query.set("page", this.page + 1);
      const text = query.toString();
      history.replaceState(null, "", `${this.address}${text ? `?${text}` : ""}`);
    }
    this.update(this.rows);
  }

  turn(by) {
    this.set({ page: this.page + by });
    this.node.scrollIntoView({ block: "start" });
  }

  head(column) {
    const kind = [column.numeric && "numeric", column.wide && "wide", column.wider && "wider", column.grow && "stretch"];
    const cell = h("th", { scope: "col", class: kind.filter(Boolean).join(" ") });
    if (column.sort == null) {
      cell.append(column.name);
      return cell;
    }
    const sort = () => {
      // Numbers begin with the largest.
      const first = column.numeric ? `-${column.name}` : column.name;
      const other = column.numeric ? column.name : `-${column.name}`;
      this.set({ sorted: this.sorted === first ? other : first, page: 0 });
    };
    cell.append(h("button", { type: "button", class: "sort", onclick: sort }, column.name));
    return cell;
  }

  row(item) {
    const cells = this.columns.map((column) => {
      const kind = [column.numeric && "numeric", column.wide && "wide", column.wider && "wider", column.grow && "stretch", column.mono && "mono", column.address && "address"];
      const cell = h("td", { class: kind.filter(Boolean).join(" ") });
      if (column.make == null) return { cell, update: (row) => say(cell, column.text(row)) };
      const { node, update } = column.make(item);
      cell.append(node);
      return { cell, update };
    });
    return {
      node: h("tr", {}, cells.map(({ cell }) => cell)),
      update: (row) => cells.forEach(({ update }) => update(row)),
    };
  }

  wanted() {
    const words = this.q.toLowerCase().split(/\s+/).filter(Boolean);
    const filters = this.filters.filter(({ name }) => this.chosen[name]);
    return this.rows.filter((row) => {
      if (!filters.every(({ name, keep }) => keep(row, this.chosen[name]))) return false;
      if (words.length === 0) return true;
      const text = this.words(row).toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  sort(rows) {
    const down = this.sorted.startsWith("-");
    const name = down ? this.sorted.slice(1) : this.sorted;
    const column = this.columns.find((one) => one.name === name && one.sort);
    for (const [at, cell] of this.heads.entries()) {
      const is = this.columns[at] === column && column != null;
      mark(cell, "aria-sort", is ? (down ? "descending" : "ascending") : null);
    }
    if (column == null) return rows;
    const values = new Map(rows.map((row) => [row, column.sort(row)]));
    const lines = rows.map((row, at) => [row, at]);
    // What is not known comes last, whichever way.
    lines.sort(([a, i], [b, j]) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (x == null || y == null) return (x == null) - (y == null) || i - j;
      const by = typeof x === "string" ? order.compare(x, y) : x - y;
      return (down ? -by : by) || i - j;
    });
    return lines.map(([row]) => row);
  }

  /** Shows these rows; `missing` says why there are none yet. */
  update(rows, missing = null) {
    this.rows = rows;
    const wanted = this.wanted();
    const last = Math.max(0, Math.ceil(wanted.length / SIZE) - 1);
    if (missing == null) this.page = Math.min(this.page, last);
    let shown = this.sort(wanted).slice(this.page * SIZE, (this.page + 1) * SIZE);
    // Rows keep their places while somebody points at one.
    if (this.body.matches(":hover, :focus-within") && this.order != null) {
      const now = new Map(wanted.map((row) => [this.key(row), row]));
      const kept = this.order.map((name) => now.get(name)).filter((row) => row != null);
      if (kept.length === shown.length) shown = kept;
    }
    this.order = shown.map(this.key);
    keyed(this.body, shown, this.key, (item) => this.row(item));
    const start = this.page * SIZE;
    // A short list is read faster than it is searched.
    this.bar.hidden = !this.address && !this.q && rows.length <= 10;
    this.pager.hidden = wanted.length <= SIZE;
    say(this.pages, `${count(start + 1)}–${count(start + shown.length)} of ${count(wanted.length)}`);
    this.back.disabled = this.page === 0;
    this.on.disabled = this.page >= last;
    let note = "";
    if (missing != null && rows.length === 0) note = missing;
    else if (rows.length === 0) note = this.empty;
    else if (wanted.length === 0) note = "Nothing matches the search.";
    say(this.note, note);
  }
}
