/**
 * Reads a recording in a browser: mono samples at a model's rate.
 *
 * WAV files are read here, everything else by the browser at the file's own rate, so that the one
 * resampling is ours.
 */
import { Mt3Error } from './errors.js';
import { resample } from './resample.js';
import { checkAudio } from './transcribe.js';
import { mixDown, readWav } from './wav.js';

/** Longest recording [s]: its samples, decoded at 48 kHz in stereo, are 1.4 GB. */
export const MAX_SECONDS = 3600;
/** Largest file [bytes]. */
export const MAX_BYTES = 2 ** 30;

/** Files below this are decoded before their length is asked for [bytes]. */
const SMALL = 4_000_000;
/** How long a browser may take to state the length of a file [ms]. */
const STATED_WITHIN = 5000;

/** Rates that files of unknown kinds are decoded at [Hz]. */
const USUAL_RATE = 44_100;

/**
 * @typedef {object} Recording
 * @property {Float32Array} samples mono, at the rate asked for
 * @property {string} reader "exact" for WAV files, else "browser"
 * @property {number} seconds
 */

/**
 * Reads a file.
 * @param {Blob} file
 * @param {number} rate wanted [Hz]
 * @returns {Promise<Recording>}
 */
export async function readRecording(file, rate) {
  if (file.size === 0) throw new Mt3Error('The file is empty. Choose another one.');
  if (file.size > MAX_BYTES) {
    throw new Mt3Error('The file is larger than 1 GB. Cut it into parts, or use mt3 transcribe.');
  }
  if (file.size > SMALL) checkLength(await statedSeconds(file));
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    throw new Mt3Error('The file cannot be read: it was moved, changed, or memory is short. Choose it again.');
  }
  const exact = readWav(bytes, checkLength);
  const sound = exact ?? (await decode(bytes));
  const mono = mixDown(sound.channels);
  const seconds = mono.length / sound.rate;
  checkLength(seconds);
  checkAudio(mono);
  return { samples: resample(mono, sound.rate, rate), reader: exact ? 'exact' : 'browser', seconds };
}

/**
 * Refuses recordings that are too long; what states no length passes.
 * @param {number} seconds
 */
function checkLength(seconds) {
  if (!(seconds > MAX_SECONDS) || seconds === Infinity) return;
  throw new Mt3Error(
    `The recording is ${Math.round(seconds / 60)} minutes long; a page can hold ` +
      `${MAX_SECONDS / 60}. Cut it into parts, or use mt3 transcribe.`,
  );
}

/**
 * Length of a file by its head, as the browser states it; NaN if it does not.
 * @param {Blob} file
 * @returns {Promise<number>}
 */
function statedSeconds(file) {
  if (typeof Audio === 'undefined') return Promise.resolve(NaN);
  const audio = new Audio();
  const address = URL.createObjectURL(file);
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      resolve(audio.duration);
      URL.revokeObjectURL(address);
    };
    const timer = setTimeout(end, STATED_WITHIN);
    audio.addEventListener('loadedmetadata', end, { once: true });
    audio.addEventListener('error', end, { once: true });
    audio.preload = 'metadata';
    audio.src = address;
  });
}

/**
 * Channels of a file that the browser can decode.
 * @param {ArrayBuffer} bytes
 * @returns {Promise<import('./wav.js').Sound>}
 */
async function decode(bytes) {
  const rate = rateOf(new Uint8Array(bytes)) ?? USUAL_RATE;
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    throw new Mt3Error(
      'This browser cannot read the file: it is no audio, it is damaged, or of a kind that is not ' +
        'here. Convert it to WAV, FLAC or MP3.',
    );
  }
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) =>
    buffer.getChannelData(i),
  );
  return { rate: buffer.sampleRate, channels };
}

/**
 * The sample rate that a FLAC, MP3 or Ogg file states, if it is one.
 * @param {Uint8Array} bytes
 * @returns {number | null}
 */
export function rateOf(bytes) {
  const at = afterTags(bytes);
  const text = (/** @type {number} */ from) => String.fromCharCode(...bytes.subarray(from, from + 4));
  const byte = (/** @type {number} */ i) => bytes[at + i] ?? 0;
  if (text(at) === 'fLaC') return (byte(18) << 12) | (byte(19) << 4) | (byte(20) >> 4);
  if (text(at) === 'OggS') return text(28) === 'Opus' ? 48_000 : null;
  if (byte(0) !== 0xff || (byte(1) & 0xe0) !== 0xe0) return null;
  const version = (byte(1) >> 3) & 3; // 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
  const base = [44_100, 48_000, 32_000][(byte(2) >> 2) & 3];
  if (!base || version === 1) return null;
  return base / ({ 3: 1, 2: 2 }[version] ?? 4);
}

/**
 * Where the sound begins behind ID3 tags.
 * @param {Uint8Array} bytes
 */
function afterTags(bytes) {
  if (bytes[0] !== 0x49 || bytes[1] !== 0x44 || bytes[2] !== 0x33) return 0;
  const size = [6, 7, 8, 9].reduce((sum, i) => (sum << 7) | ((bytes[i] ?? 0) & 127), 0);
  return 10 + size;
}
