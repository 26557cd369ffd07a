/** What the page says when something did not work, and the dialog that asks for a key. */

import { key, onKeyNeeded } from "./api.js";
import { byId, el, icon } from "./dom.js";

let countdown = 0;

export function clearNotice() {
  clearInterval(countdown);
  byId("notice").hidden = true;
  byId("notice").replaceChildren();
}

/** Says what went wrong; `again` is what a Try again button does, after as long as the server asked for. */
export function showError(error, again) {
  clearNotice();
  if (error.name === "AbortError") return;
  const text = el("div", {}, el("strong", { textContent: error.message }));
  const wait = error.retryAfter && `Try again in ${error.retryAfter} s`;
  const sentences = [error.detail, wait].filter(Boolean).map((sentence) => sentence.replace(/[^.!?…]$/, "$&."));
  if (sentences.length) text.append(el("p", { textContent: sentences.join(" ") }));
  const close = el("button", { type: "button", className: "round", "aria-label": "Close", onclick: clearNotice }, icon("close"));
  const retry = again && [0, 401, 408, 429, 500, 503].includes(error.status) ? [retryButton(error.retryAfter, again)] : [];
  byId("notice").replaceChildren(text, ...retry, close);
  byId("notice").hidden = false;
}

function retryButton(seconds, again) {
  const button = el("button", { type: "button", className: "small", textContent: "Try again" });
  button.onclick = () => (clearNotice(), again());
  let left = seconds ?? 0;
  const tick = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again (${left})` : "Try again";
    if (left-- <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 1000);
  tick();
  return button;
}

/** For screen readers: what has just happened, where the eye sees it anyway. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Opens the key dialog; resolves to true when there is a key to try. */
export function askKey(why = "Sent with every request, and forgotten when this tab closes.") {
  const dialog = byId("key");
  byId("key-why").textContent = why;
  byId("key-value").value = key.get();
  dialog.returnValue = "cancel";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const used = dialog.returnValue === "use";
      if (used) key.set(byId("key-value").value.trim());
      resolve(used && Boolean(key.get()));
    }, { once: true }); // prettier-ignore
  });
}

byId("key-cancel").onclick = () => byId("key").close("cancel");

onKeyNeeded((hadKey) =>
  askKey(hadKey ? "The server does not know this key. Check it, or ask who runs the server." : "This server asks for an API key. It is kept until this tab closes."),
);
