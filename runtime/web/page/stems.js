/**
 * Stems of a song by instrument, as `mt3_runtime.notes.stems` divides them, and ZIP archives.
 */

/** @typedef {import('../src/assembler.js').Note} Note */

/** Stems in order, with the first program and the one behind the last of each range. */
const PITCHED = /** @type {[string, [number, number][]][]} */ ([
  ['bass', [[32, 40]]],
  ['piano', [[0, 8]]],
  ['synth_lead', [[80, 85], [86, 88]]],
  ['synth_pad_fx', [[88, 104]]],
  ['guitar', [[24, 32]]],
  ['strings_ensemble', [[40, 52], [55, 56]]],
  ['vocals', [[52, 55], [85, 86]]],
]); // prettier-ignore
/** Percussion keys of metal that is struck with a stick: hi-hats and cymbals. */
const HIGH = new Set([42, 44, 46, 49, 51, 52, 53, 55, 57, 59]);
/** Names in the order in which stems are written. */
const ORDER = [
  'bass',
  'piano',
  'synth_lead',
  'synth_pad_fx',
  'guitar',
  'strings_ensemble',
  'drums',
  'high_percs',
  'vocals',
  'other',
];

/** @param {Note} note */
export function stemOf({ program, isDrum, pitch }) {
  if (isDrum) return HIGH.has(pitch) ? 'high_percs' : 'drums';
  const found = PITCHED.find(([, ranges]) => ranges.some(([a, b]) => a <= program && program < b));
  return found ? found[0] : 'other';
}

/**
 * Notes by stem; stems without notes are left out.
 * @param {Note[]} notes
 * @returns {[string, Note[]][]}
 */
export function splitStems(notes) {
  return ORDER.map(
    (name) => /** @type {[string, Note[]]} */ ([name, notes.filter((n) => stemOf(n) === name)]),
  ).filter(([, some]) => some.length);
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} data */
function crc32(data) {
  let value = 0xffffffff;
  for (const byte of data) value = (value >>> 8) ^ /** @type {number} */ (CRC[(value ^ byte) & 255]);
  return (value ^ 0xffffffff) >>> 0;
}

/**
 * Files as a ZIP archive, stored without compression.
 * @param {[string, Uint8Array][]} files names in ASCII
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function zip(files) {
  /** @type {Uint8Array[]} */
  const parts = [];
  /** @type {Uint8Array[]} */
  const directory = [];
  let at = 0;
  for (const [name, data] of files) {
    const title = new TextEncoder().encode(name);
    // version 20, no flags, stored, 1980-01-01 00:00
    const facts = [...shorts(20, 0, 0, 0, 33), ...longs(crc32(data), data.length, data.length)];
    const head = [...longs(0x04034b50), ...facts, ...shorts(title.length, 0)];
    const entry = [...longs(0x02014b50), ...shorts(20), ...facts, ...shorts(title.length, 0, 0, 0, 0)];
    parts.push(Uint8Array.from(head), title, data);
    directory.push(Uint8Array.from([...entry, ...longs(0, at)]), title);
    at += head.length + title.length + data.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = files.length;
  const end = [...longs(0x06054b50), ...shorts(0, 0, count, count), ...longs(size, at), ...shorts(0)];
  const whole = [...parts, ...directory, Uint8Array.from(end)];
  const out = new Uint8Array(whole.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of whole) {
    out.set(part, place);
    place += part.length;
  }
  return out;
}

/** @param {number[]} values */
const shorts = (...values) => values.flatMap((v) => [v & 255, (v >> 8) & 255]);
/** @param {number[]} values */
const longs = (...values) =>
  values.flatMap((v) => [v & 255, (v >>> 8) & 255, (v >>> 16) & 255, v >>> 24]);
