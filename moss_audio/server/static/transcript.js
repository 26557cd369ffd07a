/** What is said: segments that follow the sound and seek on click, and the files they make. */

import { byId, clock, el } from "./dom.js";

export class Transcript {
  #panel = byId("transcript");
  #words = [];
  #now = null;
  #scrolled = 0;

  constructor(onSeek) {
    this.onSeek = onSeek;
    for (const type of ["wheel", "touchmove", "keydown"]) {
      this.#panel.addEventListener(type, () => (this.#scrolled = Date.now()), { passive: true });
    }
  }

  clear() {
    [this.#words, this.#now] = [[], null];
    this.#panel.replaceChildren();
  }

  show(segments) {
    this.clear();
    for (const segment of segments) this.add(segment);
    if (!segments.length) this.#panel.append(el("p", { className: "quiet", textContent: "No speech was found." }));
  }

  /** One more segment: `{ start, end, text, words: [{ word, start, end }] }`, words where they are known. */
  add(segment) {
    const time = el("button", { type: "button", className: "time", textContent: clock(segment.start) });
    time.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
    time.onclick = () => this.onSeek(segment.start);
    const words = segment.words?.length ? segment.words : [{ ...segment, word: segment.text }];
    const text = el("p");
    for (const { word, start, end } of words) {
      const span = el("span", { className: "word", textContent: word.trim() });
      span.onclick = () => this.onSeek(start);
      this.#words.push({ span, start, end });
      text.append(span, " ");
    }
    this.#panel.append(el("li", {}, time, text));
  }

  /** Text that has no times yet, as it streams in. */
  draft(text) {
    this.#panel.querySelector(".draft")?.remove();
    if (text) this.#panel.append(el("li", { className: "draft" }, el("p", { textContent: text })));
  }

  follow(time, playing) {
    time += 0.03; // a seek may land just before what was asked for
    let [low, high] = [0, this.#words.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#words[middle].start <= time) low = middle + 1;
      else high = middle;
    }
    const word = low ? this.#words[low - 1] : null;
    const now = word && time < word.end + 0.2 && (playing || time > 0) ? word.span : null;
    if (now === this.#now) return;
    this.#now?.classList.remove("now");
    now?.classList.add("now");
    this.#now = now;
    if (now && playing && Date.now() - this.#scrolled > 4000) this.#reveal(now);
  }

  /** Scrolls the panel alone: `scrollIntoView` would move the page too. */
  #reveal(span) {
    const [panel, word] = [this.#panel.getBoundingClientRect(), span.getBoundingClientRect()];
    if (word.top >= panel.top + 8 && word.bottom <= panel.bottom - 8) return;
    const smooth = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    this.#panel.scrollBy({ top: word.top - panel.top - panel.height / 3, behavior: smooth });
  }
}

/** Segments with their own words, from an answer that may list all words apart, as OpenAI's does. */
export function segmentsOf({ text, segments, words, duration }) {
  if (!segments?.length) return text?.trim() ? [{ start: 0, end: duration ?? 0, text, words: words ?? [] }] : [];
  const last = segments.length - 1;
  return segments.map(({ start, end, text, words: own }, i) => {
    const until = i < last ? segments[i + 1].start : Infinity;
    const from = i ? start : -Infinity;
    const named = (own ?? words ?? []).map((word) => ({ ...word, word: word.word ?? word.text }));
    return { start, end, text: text.trim(), words: own ? named : named.filter((w) => w.start >= from && w.start < until) };
  });
}

function stamp(seconds, mark) {
  const ms = Math.round(1000 * seconds);
  const part = (size, unit, wide = 2) => String(Math.floor(ms / size) % unit).padStart(wide, "0");
  return `${part(3600000, 1e6)}:${part(60000, 60)}:${part(1000, 60)}${mark}${part(1, 1000, 3)}`;
}

const cue = (text) => text.replace(/\s*\n\s*/g, " ").replaceAll("-->", "→");

export const toSrt = (segments) =>
  segments.map((s, i) => `${i + 1}\n${stamp(s.start, ",")} --> ${stamp(s.end, ",")}\n${cue(s.text)}\n`).join("\n");

export const toVtt = (segments) => {
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `WEBVTT\n${segments.map((s) => `\n${stamp(s.start, ".")} --> ${stamp(s.end, ".")}\n${escape(cue(s.text))}\n`).join("")}`;
};
