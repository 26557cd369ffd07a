/** The recording on the stage: sound, outline, spectrogram, playhead. Seeks by pointer and by keys. */

import { decode } from "./audio.js";
import { byId, clock, spoken } from "./dom.js";
import { colours, fit, paintAxis, paintSpectrogram, paintWave } from "./paint.js";

/** A longer recording, decoded, would fill a browser's memory: it plays, but is not drawn. */
const MAX_DRAWN_SECONDS = 3600;

export class Player {
  duration = 0;
  samples = null;
  #sound = byId("sound");
  #stage = byId("stage");
  #play = byId("play");

  /** `onTime(seconds, playing)` is called whenever the playhead moves. */
  constructor(onTime) {
    this.onTime = onTime;
    this.#play.onclick = () => this.toggle();
    byId("speed").onchange = ({ target }) => (this.#sound.playbackRate = Number(target.value));
    this.#sound.onplay = () => (this.#state(), this.#follow());
    this.#sound.onpause = this.#sound.onended = () => (this.#state(), this.#moved());
    this.#sound.onseeked = () => this.#moved();
    this.#stage.onkeydown = (event) => this.#key(event);
    this.#stage.onpointerdown = (event) => {
      this.#stage.setPointerCapture(event.pointerId);
      this.#point(event);
    };
    this.#stage.onpointermove = (event) => event.buttons && this.#point(event);
    new ResizeObserver(() => this.draw()).observe(this.#stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get time() {
    return this.#sound.currentTime;
  }

  /** Shows a file; resolves when it is drawn, with a note where it cannot be. */
  async open(file) {
    this.close();
    this.#sound.src = URL.createObjectURL(file);
    const seconds = await new Promise((resolve) => {
      this.#sound.onloadedmetadata = () => resolve(this.#sound.duration);
      this.#sound.onerror = () => resolve(0);
    });
    const source = this.#sound.src;
    let note = "";
    if (seconds <= MAX_DRAWN_SECONDS || seconds === Infinity) {
      const samples = await decode(file).catch(() => null);
      if (source !== this.#sound.src) return "";
      this.samples = samples;
      if (!samples) note = "This browser cannot decode the file. The server may still read it.";
    } else note = "Too long to draw here. It plays, and the server can transcribe it.";
    this.duration = this.samples ? this.samples.length / 16000 : Number.isFinite(seconds) ? seconds : 0;
    byId("duration").textContent = clock(this.duration);
    this.#stage.setAttribute("aria-valuemax", this.duration.toFixed(1));
    this.draw();
    this.#moved();
    return note;
  }

  close() {
    this.#sound.pause();
    if (this.#sound.src) URL.revokeObjectURL(this.#sound.src);
    this.#sound.removeAttribute("src");
    [this.samples, this.duration] = [null, 0];
    this.draw();
  }

  draw() {
    const palette = colours();
    const areas = ["wave", "wave-played", "spectrogram", "axis"].map((id) => fit(byId(id)));
    if (!this.duration || areas[0].width < 1) return;
    if (this.samples) {
      paintWave(areas[0], this.samples, palette.wave);
      paintWave(areas[1], this.samples, palette.accent);
      paintSpectrogram(areas[2], this.samples, palette);
    }
    paintAxis(areas[3], this.duration, palette);
    this.#moved();
  }

  toggle() {
    if (this.#sound.paused) this.#sound.play().catch(() => {});
    else this.#sound.pause();
  }

  pause() {
    this.#sound.pause();
  }

  seek(seconds) {
    this.#sound.currentTime = Math.max(0, Math.min(seconds, this.duration));
    this.#moved();
  }

  #state() {
    const playing = !this.#sound.paused;
    this.#play.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.#play.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
  }

  #follow() {
    this.#moved();
    if (!this.#sound.paused) requestAnimationFrame(() => this.#follow());
  }

  #moved() {
    const part = this.duration ? Math.min(1, this.time / this.duration) : 0;
    byId("playhead").style.left = `${100 * part}%`;
    byId("wave-played").style.clipPath = `inset(0 ${100 - 100 * part}% 0 0)`;
    byId("time").textContent = clock(this.time);
    this.#stage.setAttribute("aria-valuenow", this.time.toFixed(1));
    this.#stage.setAttribute("aria-valuetext", `${spoken(this.time)} of ${spoken(this.duration)}`);
    this.onTime(this.time, !this.#sound.paused);
  }

  #point({ clientX }) {
    const { left, width } = this.#stage.getBoundingClientRect();
    this.seek(((clientX - left) / width) * this.duration);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    if (event.key === " ") this.toggle();
    else if (event.key === "Home") this.seek(0);
    else if (event.key === "End") this.seek(this.duration);
    else if (steps[event.key]) this.seek(this.time + steps[event.key]);
    else return;
    event.preventDefault();
  }
}
