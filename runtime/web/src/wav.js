/**
 * Reads WAV files, whose samples browsers may round otherwise: PCM of 8 to 32 bits, and floats.
 */
import { Mt3Error } from './errors.js';

const PCM = 1;
const FLOAT = 3;
const EXTENSIBLE = 0xfffe;

/** @typedef {{rate: number, channels: Float32Array[]}} Sound */

/**
 * Channels of a WAV file; null if it is none, or of a coding that is not here.
 * @param {ArrayBuffer} bytes
 * @param {(seconds: number) => void} [check] refuses a length before samples are made of it
 * @returns {Sound | null}
 */
export function readWav(bytes, check) {
  const view = new DataView(bytes);
  if (bytes.byteLength < 12 || tag(view, 0) !== 'RIFF' || tag(view, 8) !== 'WAVE') return null;
  let coding = 0;
  let count = 0;
  let rate = 0;
  let bits = 0;
  for (let at = 12; at + 8 <= bytes.byteLength; ) {
    const name = tag(view, at);
    const size = view.getUint32(at + 4, true);
    const start = at + 8;
    if (name === 'fmt ' && start + 16 <= bytes.byteLength) {
      coding = view.getUint16(start, true);
      count = view.getUint16(start + 2, true);
      rate = view.getUint32(start + 4, true);
      bits = view.getUint16(start + 14, true);
      if (coding === EXTENSIBLE && size >= 26) coding = view.getUint16(start + 24, true);
    } else if (name === 'data') {
      // Files of programs that were stopped state too much, or nothing.
      const length = Math.min(size || Infinity, bytes.byteLength - start);
      check?.(length / ((bits / 8) * count * rate));
      return decode(view, start, length, { coding, count, rate, bits });
    }
    at = start + size + (size % 2);
  }
  throw new Mt3Error('The WAV file has no samples: it was cut off. Export or copy it again.');
}

/**
 * @param {DataView} view
 * @param {number} at
 */
const tag = (view, at) =>
  String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i)));

/**
 * @param {DataView} view
 * @param {number} start
 * @param {number} length bytes
 * @param {{coding: number, count: number, rate: number, bits: number}} format
 * @returns {Sound | null}
 */
function decode(view, start, length, { coding, count, rate, bits }) {
  const read = reader(view, coding, bits);
  if (!read || !count || !rate) return null;
  const width = bits / 8;
  const frames = Math.floor(length / (width * count));
  const channels = Array.from({ length: count }, () => new Float32Array(frames));
  for (const [c, channel] of channels.entries()) {
    for (let i = 0; i < frames; i++) channel[i] = read(start + (i * count + c) * width);
  }
  return { rate, channels };
}

/**
 * Reads one sample at a place.
 * @param {DataView} view
 * @param {number} coding
 * @param {number} bits
 * @returns {((at: number) => number) | undefined}
 */
function reader(view, coding, bits) {
  if (coding === FLOAT && bits === 32) return (at) => view.getFloat32(at, true);
  if (coding === FLOAT && bits === 64) return (at) => view.getFloat64(at, true);
  if (coding !== PCM) return undefined;
  if (bits === 8) return (at) => (view.getUint8(at) - 128) / 128;
  if (bits === 16) return (at) => view.getInt16(at, true) / 2 ** 15;
  if (bits === 24) {
    return (at) => (view.getUint16(at, true) + view.getInt8(at + 2) * 2 ** 16) / 2 ** 23;
  }
  return bits === 32 ? (at) => view.getInt32(at, true) / 2 ** 31 : undefined;
}

/**
 * Mean over channels, added up in single precision as the runtime does.
 * @param {Float32Array[]} channels
 */
export function mixDown(channels) {
  const [first, ...rest] = channels;
  if (!first) throw new Mt3Error('The file has no channels. Choose another one.');
  if (!rest.length) return first;
  const mono = first.slice();
  for (const channel of rest) {
    for (let i = 0; i < mono.length; i++) {
      mono[i] = /** @type {number} */ (mono[i]) + /** @type {number} */ (channel[i]);
    }
  }
  return mono.map((value) => value / channels.length);
}
