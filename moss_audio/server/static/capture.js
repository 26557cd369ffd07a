/** Audio worklet: whatever rate the microphone has, out go 16-bit chunks of 100 ms at 16 kHz. */

const RATE = 16000;
const CHUNK = RATE / 10;

class Capture extends AudioWorkletProcessor {
  chunk = new Int16Array(CHUNK);
  filled = 0;
  sum = 0;
  count = 0;
  phase = 0;

  process([[samples]]) {
    if (!samples) return true;
    for (const sample of samples) {
      // The mean of the samples that fall into one output sample: a plain low-pass, and exact at any ratio on average.
      this.sum += sample;
      this.count++;
      this.phase += RATE;
      while (this.phase >= sampleRate) {
        this.phase -= sampleRate;
        this.emit(this.count ? this.sum / this.count : sample);
        this.sum = this.count = 0;
      }
    }
    return true;
  }

  emit(value) {
    this.chunk[this.filled++] = Math.round(32767 * Math.max(-1, Math.min(1, value)));
    if (this.filled < CHUNK) return;
    this.port.postMessage(this.chunk, [this.chunk.buffer]);
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
  }
}

registerProcessor("capture", Capture);
