/** Live mode: the microphone goes to the server as it sounds; captions and what else is heard come back. */

import * as api from "./api.js";
import { RATE } from "./audio.js";
import { byId, clock, download, el } from "./dom.js";
import { listen } from "./microphone.js";
import { clearNotice, showError } from "./notice.js";
import { toSrt } from "./transcript.js";

const SHOWN = 200;
/** How long the last words may take to come after the microphone is off. */
const LAST_WORDS_MS = 15000;

export class Live {
  #socket = null;
  #microphone = null;
  #seconds = 0;
  #captions = [];
  #running = false;
  /** Which press of the button is being served: a later one makes the earlier ones void. */
  #attempt = null;
  /** Utterances whose captions are still to come. */
  #pending = new Set();
  #cleared = false;

  constructor() {
    byId("live-start").onclick = () => (this.#running ? this.stop() : this.start());
    byId("live-save").onclick = () => download("captions.srt", toSrt(this.#captions), "application/x-subrip");
  }

  async start() {
    clearNotice();
    this.#end();
    this.#show(true, "Connecting…");
    [this.#seconds, this.#captions, this.#cleared] = [0, [], false];
    this.#pending.clear();
    byId("captions").replaceChildren();
    byId("sounds").replaceChildren();
    byId("partial").textContent = "";
    byId("live-save").hidden = true;
    const attempt = (this.#attempt = {});
    try {
      await api.checkKey(); // a WebSocket that is refused does not say why; this does, and asks for the key
      const socket = await this.#connect();
      if (attempt !== this.#attempt) return socket.close();
      this.#socket = socket;
      socket.send(JSON.stringify({ type: "session.update", session: { sample_rate: RATE, narration: true } }));
      const microphone = await listen((chunk, level) => this.#send(chunk, level));
      if (attempt !== this.#attempt) return microphone();
      this.#microphone = microphone;
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#end();
      showError(error, () => this.start());
    }
  }

  /** Stops the microphone; the last words may still come. */
  stop() {
    if (!this.#running) return;
    if (!this.#microphone) return this.#end();
    this.#attempt = null;
    this.#microphone();
    this.#microphone = null;
    byId("live-level").value = 0;
    this.#show(false, "Finishing the last words…");
    // The answer to `clear` says that whatever `commit` found has been announced.
    for (const type of ["commit", "clear"]) this.#socket.send(JSON.stringify({ type: `input_audio_buffer.${type}` }));
    const socket = this.#socket;
    setTimeout(() => socket === this.#socket && this.#end(), LAST_WORDS_MS);
  }

  #connect() {
    const url = new URL("v1/realtime", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const key = api.key.get();
    const socket = new WebSocket(url, key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"]);
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(JSON.parse(data));
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve(socket);
      socket.onclose = ({ reason }) => {
        reject(new api.Refusal(503, reason || "No live session could be opened; all of them may be taken."));
        if (socket !== this.#socket) return;
        this.#end();
        showError(new api.Refusal(0, reason || "The live session was cut off."), () => this.start());
      };
    });
  }

  #send(chunk, level) {
    byId("live-level").value = level;
    this.#seconds += chunk.length / RATE;
    this.#say("Listening.");
    byId("live-clock").textContent = clock(this.#seconds);
    this.#socket.send(chunk);
  }

  #receive(event) {
    const kind = event.type.replace("conversation.item.input_audio_transcription.", "");
    if (kind === "partial") byId("partial").textContent = event.transcript;
    else if (kind === "narration") this.#sound(event);
    else if (kind === "error") showError(new api.Refusal(400, event.error.message));
    else if (kind === "input_audio_buffer.committed") this.#pending.add(event.item_id);
    else if (kind === "completed" || kind === "failed") {
      this.#pending.delete(event.item_id);
      if (kind === "completed") this.#caption(event);
    } else if (kind === "input_audio_buffer.cleared") this.#cleared = true;
    if (this.#cleared && !this.#pending.size) this.#end();
  }

  #caption({ transcript, start, end }) {
    byId("partial").textContent = "";
    const text = transcript.trim();
    if (!text) return;
    this.#captions.push({ start, end, text });
    byId("live-save").hidden = false;
    append(byId("captions"), el("p", { textContent: text }));
  }

  #sound({ start, text }) {
    append(byId("sounds"), el("p", {}, el("time", { textContent: clock(start) }), el("span", { textContent: text })));
  }

  #end() {
    const socket = this.#socket;
    this.#microphone?.();
    this.#attempt = this.#microphone = this.#socket = null;
    socket?.close();
    byId("live-level").value = 0;
    byId("partial").textContent = "";
    this.#show(false, "Not listening.");
  }

  #show(running, state) {
    this.#running = running;
    byId("live-clock").textContent = "";
    byId("live-start-label").textContent = running ? "Stop" : "Start listening";
    byId("live-start").querySelector("use").setAttribute("href", running ? "#icon-stop" : "#icon-mic");
    this.#say(state);
  }

  /** Read aloud by screen readers, so said once for each change; the clock beside it is not. */
  #say(text) {
    if (byId("live-state").textContent !== text) byId("live-state").textContent = text;
  }
}

function append(list, node) {
  list.append(node);
  while (list.children.length > SHOWN) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}
