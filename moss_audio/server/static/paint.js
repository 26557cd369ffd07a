/** Drawing on canvases: outline, spectrogram, time axis, event lanes, and the picture that is exported. */

import { outline, spectrogram } from "./audio.js";
import { clock } from "./dom.js";

export const FONT = '12px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';

const ROWS = 96;

/** The theme's colours, as the style sheet resolves them now. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["surface", "ink", "muted", "line", "accent", "wave"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
}

/** Sizes a canvas to its place on the page, in device pixels; returns its context, which counts in page pixels. */
export function fit(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio;
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

export function paintWave({ context, width, height }, samples, colour) {
  const [pitch, bar] = [3, 2];
  const peaks = outline(samples, Math.max(1, Math.floor(width / pitch)));
  context.fillStyle = colour;
  peaks.forEach((peak, i) => {
    const tall = Math.max(bar, peak * (height - 4));
    context.beginPath();
    context.roundRect((i * width) / peaks.length, (height - tall) / 2, bar, tall, bar / 2);
    context.fill();
  });
}

export function paintSpectrogram({ context, width, height }, samples, { surface, accent, ink }) {
  const columns = Math.max(1, Math.min(1200, Math.round(width)));
  const values = spectrogram(samples, columns, ROWS);
  const ramp = [surface, accent, ink].map(rgb);
  const image = new ImageData(columns, ROWS);
  values.forEach((value, i) => {
    const strength = value ** 1.6;
    const [low, high, part] =
      strength < 0.7 ? [ramp[0], ramp[1], strength / 0.7] : [ramp[1], ramp[2], (strength - 0.7) / 0.3];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = low[c] + (high[c] - low[c]) * part;
    image.data[4 * i + 3] = 255;
  });
  const small = new OffscreenCanvas(columns, ROWS);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
}

export function paintAxis({ context, width, height }, duration, { muted, line }) {
  context.font = FONT;
  context.textBaseline = "bottom";
  const step = tickStep(duration, width / 72);
  for (let tick = 0; tick * step <= duration; tick++) {
    const x = Math.min(width - 0.5, ((tick * step) / duration) * width + 0.5);
    context.fillStyle = line;
    context.fillRect(x, 0, 1, 4);
    const label = clock(tick * step, step < 1 ? 1 : 0);
    const wide = context.measureText(label).width;
    context.fillStyle = muted;
    if (x + wide / 2 <= width + 4) context.fillText(label, Math.max(0, Math.min(width - wide, x - wide / 2)), height);
  }
}

function tickStep(duration, most) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
  return steps.find((step) => duration / step <= Math.max(2, most)) ?? 7200;
}

/** Where each event goes on a track `width` wide: `{ event, lane, left, span, labelLeft }`; labels never overlap. */
export function layoutEvents(events, duration, width) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.font = FONT;
  const lanes = [];
  return events.map((event) => {
    const left = Math.min(width - 4, (event.start / duration) * width);
    const span = Math.max(4, Math.min(width - left, ((event.end - event.start) / duration) * width));
    const wide = Math.min(width, context.measureText(event.label).width);
    const labelLeft = Math.max(0, Math.min(left, width - wide - 2));
    let lane = lanes.findIndex((end) => end + 8 <= Math.min(left, labelLeft));
    if (lane < 0) lane = lanes.push(0) - 1;
    lanes[lane] = Math.max(left + span, labelLeft + wide);
    return { event, lane, left, span, labelLeft };
  });
}

/** The recording on one sheet: name, outline, spectrogram, axis, events. */
export async function picture(name, samples, duration, events) {
  const [margin, width, laneHeight] = [40, 1520, 30];
  const placed = layoutEvents(events, duration, width);
  const lanes = placed.reduce((most, { lane }) => Math.max(most, lane + 1), 0);
  const canvas = new OffscreenCanvas(width + 2 * margin, 440 + lanes * laneHeight + (lanes ? 16 : 0));
  const context = canvas.getContext("2d");
  const palette = colours();
  context.fillStyle = palette.surface;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = palette.ink;
  context.font = FONT.replace("12px", "600 22px");
  context.fillText(name, margin, margin + 16, width);
  const strip = (top, height, paint) => {
    context.save();
    context.translate(margin, top);
    paint({ context, width, height });
    context.restore();
  };
  strip(76, 110, (area) => paintWave(area, samples, palette.accent));
  strip(200, 170, (area) => paintSpectrogram(area, samples, palette));
  strip(378, 22, (area) => paintAxis(area, duration, palette));
  context.font = FONT;
  context.textBaseline = "alphabetic";
  for (const { event, lane, left, span, labelLeft } of placed) {
    const top = 420 + lane * laneHeight;
    context.fillStyle = palette.accent;
    context.beginPath();
    context.roundRect(margin + left, top, span, 6, 3);
    context.fill();
    context.fillStyle = palette.ink;
    context.fillText(event.label, margin + labelLeft, top + 20, width);
  }
  return canvas.convertToBlob({ type: "image/png" });
}

function rgb(colour) {
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}
