/** The conversation about a recording: questions, streamed answers, results of tasks. */

import * as api from "./api.js";
import { byId, clock, el } from "./dom.js";

export class Conversation {
  #log = byId("log");

  constructor(onSeek) {
    this.onSeek = onSeek;
  }

  /** `messages`: `{ role, content }` of the talk, `{ role: "task", title, result }` of tasks. */
  show(messages) {
    this.messages = messages;
    this.#log.replaceChildren();
    for (const message of messages) {
      if (message.role === "task") this.#add("answer").append(...this.#result(message));
      else this.#add(message.role === "user" ? "question" : "answer").append(...this.#answer(message));
    }
  }

  /** Asks, and shows the answer while it comes. An answer that is stopped stays as far as it came. */
  async ask(file, name, content, signal) {
    const question = { role: "user", content };
    const talk = [...this.messages.filter(({ role }) => role !== "task"), question];
    const answer = { role: "assistant", content: "", reasoning: "" };
    const asked = this.#add("question");
    asked.append(el("p", { textContent: content }));
    const bubble = this.#pending();
    try {
      for await (const delta of api.chat(file, name, talk, signal)) {
        answer.content += delta.content ?? "";
        answer.reasoning += delta.reasoning_content ?? "";
        if (answer.content || answer.reasoning) bubble.replaceChildren(...this.#answer(answer));
        this.#scroll();
      }
      if (!answer.content) bubble.replaceChildren(el("p", { className: "quiet", textContent: "(an empty answer)" }));
    } catch (error) {
      if (answer.content) bubble.append(el("p", { className: "quiet", textContent: "Stopped." }));
      else [asked, bubble].forEach((node) => node.remove());
      throw error;
    } finally {
      this.#log.removeAttribute("aria-busy");
      // A question without an answer is no turn: it would break the next request.
      if (answer.content) this.messages.push(question, answer);
    }
  }

  /** Runs a task and shows its result; returns it. */
  async run(task, title, options, file, name, signal) {
    const bubble = this.#pending();
    try {
      const result = await api.task(task, options, file, name, signal);
      const message = { role: "task", title, result };
      this.messages.push(message);
      bubble.replaceChildren(...this.#result(message));
      this.#log.scrollTop = bubble.offsetTop - this.#log.offsetTop; // a table is read from its head
      return result;
    } catch (error) {
      bubble.remove();
      throw error;
    } finally {
      this.#log.removeAttribute("aria-busy");
    }
  }

  #add(kind) {
    const bubble = el("div", { className: `bubble ${kind}` });
    this.#log.append(bubble);
    this.#scroll();
    return bubble;
  }

  #pending() {
    const bubble = this.#add("answer");
    this.#log.setAttribute("aria-busy", "true"); // a screen reader waits for the whole answer
    bubble.append(el("p", { className: "dots", role: "img", "aria-label": "Listening" }, el("i"), el("i"), el("i")));
    return bubble;
  }

  #scroll() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #answer({ content, reasoning }) {
    const thought = reasoning
      ? [el("details", {}, el("summary", { textContent: "Reasoning" }), el("p", { textContent: reasoning }))]
      : [];
    return [...thought, ...content.split(/\n{2,}/).filter(Boolean).map((text) => el("p", { textContent: text }))];
  }

  #result({ title, result }) {
    const { duration, finish_reason: ended, usage, ...own } = result;
    const cut = ended === "length" ? [el("p", { className: "quiet", textContent: "The answer was cut off." })] : [];
    return [el("h3", { textContent: title }), this.#value(unwrapped(own)), ...cut];
  }

  /** Any JSON as text, list, table or pairs; times become buttons that seek. */
  #value(value) {
    if (Array.isArray(value)) {
      if (!value.length) return el("p", { className: "quiet", textContent: "none" });
      if (value.every((item) => item && typeof item === "object" && !Array.isArray(item))) return this.#table(value);
      return el("ul", {}, ...value.map((item) => el("li", {}, this.#value(item))));
    }
    if (value && typeof value === "object") {
      const pairs = Object.entries(value).filter(([, item]) => item !== null && item !== "");
      return el("dl", {}, ...pairs.flatMap(([name, item]) => [
        el("dt", { textContent: words(name) }),
        el("dd", {}, this.#cell(name, item)),
      ])); // prettier-ignore
    }
    return el("p", { textContent: plain(value) });
  }

  #table(rows) {
    const columns = [...new Set(rows.flatMap(Object.keys))];
    // The words of a sentence are in the transcript; here its text is enough.
    const names = columns.includes("text") ? columns.filter((name) => name !== "words") : columns;
    const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col", textContent: words(name) })));
    const body = rows.map((row) => el("tr", {}, ...names.map((name) => el("td", {}, this.#cell(name, row[name])))));
    const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
    return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Result table" }, table);
  }

  #cell(name, value) {
    if (/^(start|end)$/.test(name) && typeof value === "number") {
      const button = el("button", { type: "button", className: "time", textContent: clock(value, 1) });
      button.onclick = () => this.onSeek(value);
      return button;
    }
    return value && typeof value === "object" ? this.#value(value) : plain(value);
  }
}

/** What is inside, where there is but one thing: a description is its text. */
function unwrapped(value) {
  if (!value || typeof value !== "object") return value;
  if ("text" in value && Object.keys(value).every((key) => ["start", "end", "text"].includes(key))) return value.text;
  const inner = Object.values(value);
  return inner.length === 1 ? unwrapped(inner[0]) : value;
}

const words = (name) => name.replaceAll("_", " ");

function plain(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toFixed(2))) : String(value);
}
