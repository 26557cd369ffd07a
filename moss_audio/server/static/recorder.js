/** Records the microphone into a WAV file, with a bar that shows how it goes. */

import { RATE, wav } from "./audio.js";
import { byId, clock } from "./dom.js";
import { listen } from "./microphone.js";

const MAX_SECONDS = 30 * 60;

/** Resolves to a WAV blob, or null where it is discarded. Throws where there is no microphone. */
export async function record() {
  const bar = byId("recorder");
  const chunks = [];
  let samples = 0;
  let finish;
  const finished = new Promise((resolve) => (finish = resolve));
  const stop = await listen((chunk, level) => {
    chunks.push(chunk);
    samples += chunk.length;
    byId("recorded").textContent = clock(samples / RATE);
    byId("record-level").value = level;
    if (samples >= MAX_SECONDS * RATE) finish(true);
  });
  byId("record-stop").onclick = () => finish(true);
  byId("record-discard").onclick = () => finish(false);
  bar.hidden = false;
  byId("record-stop").focus();
  const wanted = await finished;
  stop();
  bar.hidden = true;
  byId("recorded").textContent = clock(0);
  return wanted && samples ? wav(chunks) : null;
}
