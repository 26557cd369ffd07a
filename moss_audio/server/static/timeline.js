/** Sound events under the outline: a bar where each one sounds, a label beside it, a click to hear it. */

import { byId, clock, el } from "./dom.js";
import { layoutEvents } from "./paint.js";

const LANE = 34;

export class Timeline {
  #list = byId("timeline");
  #events = [];
  #duration = 0;
  #buttons = [];

  constructor(onSeek) {
    this.onSeek = onSeek;
    new ResizeObserver(() => this.#draw()).observe(this.#list.parentElement);
  }

  /** `events`: `{ label, start, end }` in order of start. */
  show(events, duration) {
    [this.#events, this.#duration] = [events, duration];
    this.#draw();
  }

  follow(time) {
    for (const [button, event] of this.#buttons) {
      button.classList.toggle("now", event.start <= time && time < event.end);
    }
  }

  #draw() {
    const width = this.#list.parentElement.clientWidth;
    const known = this.#duration > 0 && width > 0 ? this.#events : [];
    const placed = layoutEvents(known, this.#duration, width);
    const lanes = placed.reduce((most, { lane }) => Math.max(most, lane + 1), 0);
    this.#list.hidden = !placed.length;
    this.#list.style.height = `${lanes * LANE}px`;
    this.#buttons = [];
    this.#list.replaceChildren(
      ...placed.map(({ event, lane, left, span, labelLeft }) => {
        const name = `${event.label}, ${clock(event.start, 1)} to ${clock(event.end, 1)}`;
        const bar = el("span", { className: "bar" });
        const label = el("span", { className: "label", textContent: event.label });
        const button = el("button", { type: "button", title: name, "aria-label": name }, bar, label);
        button.onclick = () => this.onSeek(event.start);
        const start = Math.min(left, labelLeft);
        button.style.maxWidth = `${width - start}px`;
        button.style.left = `${start}px`;
        button.style.top = `${lane * LANE}px`;
        bar.style.marginLeft = `${left - start}px`;
        bar.style.width = `${span}px`;
        label.style.marginLeft = `${labelLeft - start}px`;
        this.#buttons.push([button, event]);
        return el("li", {}, button);
      }),
    );
  }
}
