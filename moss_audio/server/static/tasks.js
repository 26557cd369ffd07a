/** The typed tasks of the server: their names on the page, and what some of them need to be told. */

import { byId, el } from "./dom.js";

export const TASKS = {
  describe: "Describe",
  summarize: "Summary",
  speaker: "Speaker",
  emotion: "Emotion",
  music: "Music",
  narrate: "Scene",
  converse: "Caller",
  review: "Review",
  feedback: "Practice",
  choose: "Choose",
  events: "Sound events",
};

const FIELDS = {
  feedback: [{ name: "text", label: "What was to be said", rows: 3 }],
  choose: [
    { name: "question", label: "Question", rows: 1 },
    { name: "choices", label: "Two to four answers, one a line", rows: 4, list: true },
  ],
};

/** The options of a task, asked for where it needs any; null where the question was put aside. */
export function optionsFor(task) {
  const fields = FIELDS[task];
  if (!fields) return Promise.resolve({});
  const dialog = byId("options");
  byId("options-title").textContent = TASKS[task];
  const inputs = fields.map(({ rows, name }) => el("textarea", { id: `option-${name}`, rows, required: true }));
  byId("options-fields").replaceChildren(
    ...fields.flatMap(({ name, label }, i) => [el("label", { htmlFor: `option-${name}`, textContent: label }), inputs[i]]),
  );
  byId("options-cancel").onclick = () => dialog.close("cancel");
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    const read = ({ list }, value) => (list ? value.split("\n").map((line) => line.trim()).filter(Boolean) : value.trim());
    const values = () => Object.fromEntries(fields.map((field, i) => [field.name, read(field, inputs[i].value)]));
    dialog.onclose = () => resolve(dialog.returnValue === "run" ? values() : null);
  });
}
