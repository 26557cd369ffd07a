/** Numbers of a recording: its samples, their outline and their spectrogram, and WAV files. Draws nothing. */

export const RATE = 16000;

const FFT = 512;
const FLOOR_DB = 70;
const LOWEST_HZ = 60;

/** Samples `[n]` mono at 16 kHz; throws where the browser cannot decode the file. */
export async function decode(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const buffer = await context.decodeAudioData(await file.arrayBuffer());
  const samples = new Float32Array(buffer.getChannelData(0));
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    const data = buffer.getChannelData(channel);
    for (let i = 0; i < samples.length; i++) samples[i] += data[i];
  }
  if (buffer.numberOfChannels > 1) for (let i = 0; i < samples.length; i++) samples[i] /= buffer.numberOfChannels;
  return samples;
}

/** Loudest sample of each of `columns` stretches, 0 to 1 of the loudest of all. */
export function outline(samples, columns) {
  const peaks = new Float32Array(columns);
  for (let column = 0; column < columns; column++) {
    const end = Math.max(Math.floor(((column + 1) * samples.length) / columns), 1);
    const start = Math.min(Math.floor((column * samples.length) / columns), end - 1);
    for (let i = start; i < end; i++) peaks[column] = Math.max(peaks[column], Math.abs(samples[i]));
  }
  const loudest = peaks.reduce((a, b) => Math.max(a, b), 1e-4);
  return peaks.map((peak) => peak / loudest);
}

/** Intensities 0 to 1, `[columns * rows]`, row 0 the highest pitch; rows are mel-spaced up to 8 kHz. */
export function spectrogram(samples, columns, rows) {
  const [re, im, power] = [new Float32Array(FFT), new Float32Array(FFT), new Float32Array(FFT / 2 + 1)];
  const hann = Float32Array.from(re, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT));
  const bins = melBins(rows);
  const image = new Float32Array(columns * rows);
  const step = samples.length / columns;
  // A column of a long recording stands for seconds: three looks at it, the loudest wins.
  const looks = step > FFT ? 3 : 1;
  for (let column = 0; column < columns; column++) {
    power.fill(0);
    for (let look = 0; look < looks; look++) {
      const centre = Math.floor((column + (look + 0.5) / looks) * step);
      for (let i = 0; i < FFT; i++) re[i] = (samples[centre - FFT / 2 + i] || 0) * hann[i];
      im.fill(0);
      fft(re, im);
      for (let i = 0; i <= FFT / 2; i++) power[i] = Math.max(power[i], re[i] * re[i] + im[i] * im[i]);
    }
    for (let row = 0; row < rows; row++) {
      const [bin, part] = [Math.floor(bins[row]), bins[row] % 1];
      const value = power[bin] * (1 - part) + power[Math.min(bin + 1, FFT / 2)] * part;
      image[row * columns + column] = 10 * Math.log10(value + 1e-10);
    }
  }
  const top = image.reduce((a, b) => Math.max(a, b), FLOOR_DB - 100); // 1e-10 is -100 dB: silence stays empty
  return image.map((db) => Math.max(0, 1 + (db - top) / FLOOR_DB));
}

function melBins(rows) {
  const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
  const [low, high] = [mel(LOWEST_HZ), mel(RATE / 2)];
  return Array.from({ length: rows }, (_, row) => {
    const hz = 700 * (10 ** ((high - ((high - low) * row) / (rows - 1)) / 2595) - 1);
    return Math.min((hz * FFT) / RATE, FFT / 2);
  });
}

/** Radix-2 FFT in place. */
function fft(re, im) {
  for (let i = 1, j = 0; i < FFT; i++) {
    let bit = FFT >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]]; // im is all zero here
  }
  for (let size = 2; size <= FFT; size <<= 1) {
    for (let k = 0; k < size / 2; k++) {
      const angle = (-2 * Math.PI * k) / size;
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let a = k; a < FFT; a += size) {
        const b = a + size / 2;
        const [x, y] = [re[b] * cos - im[b] * sin, re[b] * sin + im[b] * cos];
        [re[b], im[b]] = [re[a] - x, im[a] - y];
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

/** A WAV file of 16-bit mono chunks at 16 kHz. */
export function wav(chunks) {
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, value) => [...value].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"), header.setUint32(4, 36 + bytes, true), text(8, "WAVEfmt ");
  header.setUint32(16, 16, true), header.setUint16(20, 1, true), header.setUint16(22, 1, true);
  header.setUint32(24, RATE, true), header.setUint32(28, 2 * RATE, true);
  header.setUint16(32, 2, true), header.setUint16(34, 16, true);
  text(36, "data"), header.setUint32(40, bytes, true);
  return new Blob([header, ...chunks], { type: "audio/wav" });
}

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let binary = "";
  for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(binary);
}
