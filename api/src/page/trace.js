// What would become of a packet.

import { choice, h, keyed, state } from "./dom.js";
import { send } from "./link.js";
import { model } from "./model.js";

const TONES = {
  forwarded: "ok", delivered: "ok", answered: "ok", passed: "calm", refused: "warn", dropped: "bad",
};
const NUMBERS = new Set(["length", "ttl"]);

const field = (name, label, hint, more = {}) => {
  const input = h("input", { id: `trace-${name}`, name, spellcheck: "false", autocomplete: "off", ...more });
  return h("label", { class: "field" }, h("span", {}, label), input, hint && h("span", { class: "hint" }, hint));
};

/** What the form says, as the API takes it. */
function request(form) {
  const body = {};
  for (const [name, text] of new FormData(form)) {
    const value = text.trim();
    if (value !== "") body[name] = NUMBERS.has(name) ? Number(value) : value;
  }
  // A frame says all but where it comes in.
  if (body.frame == null) return body;
  return { frame: body.frame.replace(/\s+/g, ""), ...(body.device && { device: body.device }) };
}

function shown(trace) {
  const word = state();
  word.update(trace.outcome, TONES[trace.outcome] ?? "calm");
  const { leaves } = trace;
  const facts = [
    ["Packet", trace.packet?.headers],
    ["Comes in by", trace.device],
    ["Reason", trace.reason],
    ["Frontend", trace.frontend],
    ["Backend", trace.backend],
    ["Mode", trace.mode],
    ["Leaves by", leaves && `${leaves.device}, from ${leaves.source} to ${leaves.nextHop}, MTU ${leaves.mtu}`],
    ["Becomes", trace.result?.headers],
  ];
  return [
    h("div", { class: "head" }, h("h2", { tabindex: "-1" }, "Outcome"), word.node, h("span", { class: "muted mono" }, trace.verdict)),
    trace.difference == null ? null : h("p", { class: "wrong" }, trace.difference),
    trace.advice == null ? null : h("p", {}, trace.advice),
    (trace.warnings ?? []).map((text) => h("p", { class: "warning" }, text)),
    h("dl", { class: "facts" }, facts.filter(([, text]) => text).map(([name, text]) =>
      h("div", {}, h("dt", {}, name), h("dd", { class: "mono" }, text)))),
    h("h2", {}, "Steps"),
    h("ol", { class: "steps" }, (trace.steps ?? []).map(({ step, found }) =>
      h("li", {}, h("span", { class: "mono step" }, step), h("span", {}, found)))),
  ];
}

export function trace() {
  const wrong = h("div", { class: "wrong", role: "alert" });
  const result = h("div", { "aria-live": "polite" });
  const devices = h("datalist", { id: "devices" });
  const protocols = ["TCP", "UDP", "SCTP", "ICMP"].map((name) => [name, name]);
  const protocol = choice("Protocol", protocols, "TCP", () => {});
  protocol.querySelector("select").setAttribute("name", "protocol");
  const go = h("button", { type: "submit", class: "first" }, "Trace");
  const form = h(
    "form",
    { class: "form" },
    field("from", "From", "198.51.100.7:40000, [2001:db8::7]:40000", { inputmode: "text" }),
    field("to", "To", "203.0.113.10:80"),
    protocol,
    field("device", "Device", "where there are several", { list: "devices" }),
    field("flags", "Flags", "syn, ack, fin, rst, psh, urg or none"),
    field("length", "Length, bytes", "of the IP packet", { type: "number", min: "20", max: "65535" }),
    field("ttl", "TTL", null, { type: "number", min: "0", max: "255" }),
    field("frame", "Or a whole frame", "hexadecimal, from the Ethernet header on"),
    devices,
    h("div", { class: "line" }, go),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.replaceChildren();
    go.disabled = true;
    try {
      const answer = await send("/trace", { method: "POST", body: request(form) });
      result.replaceChildren(...shown(await answer.json()).flat().filter(Boolean));
      result.querySelector("h2").focus();
    } catch (problem) {
      result.replaceChildren();
      const lines = problem.errors?.map(({ pointer, detail }) => h("p", {}, `${pointer.slice(1) || "packet"}: ${detail}`));
      const text = problem.status == null ? "There is no connection to the instance." : problem.message;
      wrong.replaceChildren(...(lines?.length ? lines : [h("p", {}, text)]));
    }
    go.disabled = false;
  });

  return {
    title: "Trace",
    node: h(
      "section",
      {},
      h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Trace")),
      h("p", { class: "muted" }, "What would become of a packet now. Nothing is sent, counted or recorded."),
      form, wrong, result,
    ),
    update() {
      const names = model.devices.map((one) => one.name);
      keyed(devices, names, (name) => name, (name) => ({ node: h("option", { value: name }), update: () => {} }));
    },
  };
}
