// Draining a backend, once that is confirmed.

import { h, say } from "./dom.js";
import { escape, send } from "./link.js";

const dialog = document.querySelector("#dialog");

/** Asks whether a backend is to be drained, or undrained, and does it; `done` is called then. */
export async function askDrain(view, done) {
  const verb = view.drained ? "Undrain" : "Drain";
  const wrong = h("p", { class: "wrong", role: "alert" });
  const remove = h("input", { type: "checkbox", id: "remove" });
  const offer = !view.drained && view.owner === "api";
  const go = h("button", { type: "submit", class: "first" }, verb);
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title" }, `${verb} ${view.backend}?`),
    h("p", {}, "Of service ", h("strong", {}, view.service), "."),
    h("p", {}, view.drained
      ? "It gets new flows again, in its share."
      : "It keeps the flows that it has and gets no new ones, until it is undrained."),
    offer ? h("label", { class: "check" }, remove, "Remove it from the service once its last flow is gone") : null,
    wrong,
    h("div", { class: "line end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), go),
  );
  const path = `/services/${escape(view.service)}`;
  // What is confirmed is what was seen: the tag of now.
  const seen = send(path).then((answer) => answer.headers.get("etag"));
  seen.catch(() => {});
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      const tag = await seen;
      const query = remove.checked ? "?remove=true" : "";
      const target = `${path}/backends/${escape(view.backend)}/${verb.toLowerCase()}${query}`;
      await send(target, { method: "POST", headers: tag ? { "if-match": tag } : {} });
      dialog.close();
      done().catch(() => {});
    } catch (problem) {
      say(wrong, explain(problem));
      go.disabled = problem.status === 403 || problem.status === 412;
    }
  });
  dialog.replaceChildren(form);
  dialog.showModal();
}

function explain(problem) {
  if (problem.status === 403) return `Not allowed: ${problem.message}.`;
  if (problem.status === 412) return "The service has changed since this was opened. Close, look at it again, and try again.";
  if (problem.status == null) return "There is no connection to the instance.";
  return problem.message;
}
