// Elements. What comes from the instance only ever becomes text nodes.

/** An element with attributes (`on…` are listeners) and children: elements, or what becomes text. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

/** Sets an element's text; nothing is touched where it says that already. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute where it differs; null removes it. */
export function mark(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const kept = new WeakMap();

/**
 * Makes the children of an element those of the items, in their order. `make(item)` gives
 * `{ node, update(item) }`; what stays is updated in place, and keeps the focus.
 */
export function keyed(parent, items, key, make) {
  const before = kept.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const name = key(item);
    const row = before.get(name) ?? make(item);
    row.update(item);
    now.set(name, row);
  }
  for (const [name, row] of before) if (!now.has(name)) row.node.remove();
  const focused = document.activeElement;
  let place = parent.firstChild;
  for (const { node } of now.values()) {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  kept.set(parent, now);
}

/** A word with a dot of the colour of its tone: `ok`, `warn`, `bad`, `calm`. */
export function state() {
  const node = h("span", { class: "state" });
  return {
    node,
    update(text, tone, title) {
      say(node, text);
      mark(node, "data-tone", tone);
      mark(node, "title", title);
    },
  };
}

/** A labelled list of choices: pairs of value and text. */
export function choice(label, options, value, change) {
  const select = h(
    "select",
    { onchange: () => change(select.value) },
    options.map(([name, text]) => h("option", { value: name, selected: name === value }, text)),
  );
  return h("label", { class: "choice" }, h("span", {}, label), select);
}

/** The course of a figure. */
export function spark() {
  const space = "http://www.w3.org/2000/svg";
  const node = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "polyline");
  node.setAttribute("viewBox", "0 0 60 20");
  node.setAttribute("preserveAspectRatio", "none");
  node.setAttribute("class", "spark");
  node.setAttribute("aria-hidden", "true");
  node.append(line);
  return {
    node,
    update(values) {
      // A few points are no course yet.
      if (values.length < 5) values = [];
      const top = Math.max(1, ...values);
      const points = values.map((value, at) => `${60 - values.length + at + 1},${19 - (18 * value) / top}`);
      line.setAttribute("points", points.join(" "));
    },
  };
}
