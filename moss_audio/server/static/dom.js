/** Building blocks of the page: elements, times, downloads. Text is always text: nothing here parses HTML. */

export const byId = (id) => document.getElementById(id);

/** An element with properties, attributes (any name with a dash) and listeners (`onclick`). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** `75.25` as `1:15`, with `digits` decimals of a second; hours only where there are some. */
export function clock(seconds, digits = 0) {
  const unit = 10 ** digits;
  const ticks = Math.floor(Math.max(0, seconds) * unit + 1e-6);
  const whole = Math.floor(ticks / unit);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = digits ? `.${String(ticks % unit).padStart(digits, "0")}` : "";
  const head = hours ? `${hours}:${String(minutes).padStart(2, "0")}` : `${minutes}`;
  return `${head}:${String(whole % 60).padStart(2, "0")}${tail}`;
}

/** The same for a screen reader: `1 minute 15 seconds`. */
export function spoken(seconds) {
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  const count = (n, unit) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  return minutes ? `${count(minutes, "minute")} ${count(rest, "second")}` : count(rest, "second");
}

export function download(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
