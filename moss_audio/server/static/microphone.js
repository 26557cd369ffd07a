/** The microphone, as 16-bit chunks at 16 kHz. Knows nothing of what becomes of them. */

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the microphone. Allow it in the address bar and try again.",
  NotFoundError: "No microphone was found. Connect one and try again.",
  NotReadableError: "The microphone is in use by another program. Close it and try again.",
};

/** Calls `onChunk(Int16Array, level 0..1)` ten times a second; returns the function that stops it. */
export async function listen(onChunk) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the microphone only to https pages and localhost. Open this page over https.");
  }
  let stream;
  try {
    // What browsers do for telephony, suppressing all but a voice, would take away what is to be heard.
    const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...raw } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `The microphone did not start: ${error.message}`);
  }
  const context = new AudioContext();
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    if (context.state !== "closed") context.close();
  };
  try {
    await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
  } catch (error) {
    stop();
    throw new Error(`The microphone did not start: ${error.message}`);
  }
  const node = new AudioWorkletNode(context, "capture");
  node.port.onmessage = ({ data }) => onChunk(data, level(data));
  context.createMediaStreamSource(stream).connect(node).connect(context.destination); // the worklet's output is silent
  return stop;
}

function level(chunk) {
  const power = chunk.reduce((sum, sample) => sum + sample * sample, 0) / chunk.length;
  const db = 10 * Math.log10(power / 32768 ** 2 + 1e-9);
  return Math.max(0, Math.min(1, 1 + db / 60));
}
