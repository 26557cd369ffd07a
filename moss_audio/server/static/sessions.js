/** The history dialog: what was heard before, to open again or to delete. */

import { byId, clock, el, icon } from "./dom.js";
import * as history from "./history.js";
import { showError } from "./notice.js";

/** Shows the dialog; `onOpen(session)` gets the one that is chosen. */
export async function showHistory(onOpen) {
  const dialog = byId("history");
  byId("forget-all").onclick = async () => {
    if (confirm("Delete all recordings and what was found in them from this browser?")) await history.forgetAll();
    await draw(onOpen);
  };
  try {
    await draw(onOpen);
    if (!dialog.open) dialog.showModal();
  } catch {
    showError(new Error("This browser keeps no history, as in a private window."));
  }
}

async function draw(onOpen) {
  const sessions = await history.all();
  byId("forget-all").hidden = !sessions.length;
  byId("sessions").replaceChildren(...sessions.map((session) => row(session, onOpen)));
  if (!sessions.length) byId("sessions").append(el("li", { className: "quiet", textContent: "Nothing yet." }));
}

function row(session, onOpen) {
  const date = new Date(session.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const open = el("button", { type: "button", className: "entry" },
    el("span", { textContent: session.name }),
    el("span", { className: "quiet", textContent: `${clock(session.duration ?? 0)} · ${date}` }),
  ); // prettier-ignore
  open.onclick = () => (byId("history").close(), onOpen(session));
  const remove = el("button", { type: "button", className: "round", "aria-label": `Delete ${session.name}` }, icon("close"));
  remove.onclick = async () => (await history.forget(session.id), draw(onOpen));
  return el("li", {}, open, remove);
}
