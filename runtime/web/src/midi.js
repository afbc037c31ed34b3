/**
 * Writes standard MIDI files of type 1: the bytes of `mt3_runtime.files.midi`.
 */
import { assignChannels, compare, roundHalfEven } from './channels.js';
import { Mt3Error } from './errors.js';
import { instrumentName } from './instruments.js';

/** Ticks per quarter: at 120 bpm 10 ms are 48 ticks. */
const RESOLUTION = 2400;
/** Last tick to use if possible: the most used reader refuses longer files. */
const MAX_TICK = 10_000_000 - 1;
const MAX_DELTA = 2 ** 28 - 1;
/** Largest rounding error of a time, in seconds. */
const MAX_ERROR = 0.0005;

/**
 * Writes notes as a MIDI file: a tempo track, then one track per program and layer.
 * @param {import('./assembler.js').Note[]} notes in any order
 * @param {{tempo?: number}} [options] quarters per minute, 20..400
 * @returns {Uint8Array}
 */
export function toMidi(notes, { tempo = 120 } = {}) {
  if (!(tempo >= 20 && tempo <= 400)) throw new Mt3Error(`tempo is ${tempo}; expected 20..400.`);
  const ordered = [...notes].sort((a, b) => compare(order(a), order(b)));
  const quarter = roundHalfEven(60e6 / tempo);
  const end = ordered.reduce((latest, { offset }) => Math.max(latest, offset), 0);
  const resolution = ticksPerQuarter(quarter, end);
  const tracks = assignChannels(ordered, (resolution * 1e6) / quarter);
  const head = new TrackWriter();
  head.meta(0x03, latin('mt3-runtime'));
  head.meta(0x51, [quarter >> 16, (quarter >> 8) & 255, quarter & 255]);
  const severalPorts = tracks.some(({ port }) => port);
  const chunks = [head.chunk(), ...tracks.map((track) => trackChunk(track, severalPorts))];
  const header = [0, 1, ...word(chunks.length), ...word(resolution)];
  return concat([latin('MThd'), [0, 0, 0, 6], header, ...chunks]);
}

/** @param {import('./assembler.js').Note} note */
const order = ({ onset, offset, pitch, velocity, program, isDrum }) => [
  onset,
  offset,
  pitch,
  velocity,
  program,
  Number(isDrum),
];

/**
 * Ticks per quarter: doubled for very slow tempi, halved for very long files.
 * @param {number} quarter microseconds
 * @param {number} end seconds
 */
function ticksPerQuarter(quarter, end) {
  let fine = [1, 2, 4, 8]
    .map((divisor) => RESOLUTION / divisor)
    .filter((candidate) => quarter / candidate / 2 <= MAX_ERROR * 1e6);
  if (!fine.length) fine = [2 * RESOLUTION];
  const coarsest = /** @type {number} */ (fine[fine.length - 1]);
  const ticks = (/** @type {number} */ candidate) => ((end * 1e6) / quarter) * candidate;
  if (!(ticks(coarsest) <= MAX_DELTA - 1)) {
    throw new Mt3Error(`A note ends at ${end} s, later than a MIDI file can express.`);
  }
  return fine.find((candidate) => ticks(candidate) < MAX_TICK) ?? coarsest;
}

/**
 * @param {import('./channels.js').Track} track
 * @param {boolean} withPort
 */
function trackChunk(track, withPort) {
  const writer = new TrackWriter();
  if (withPort) writer.meta(0x21, [track.port]);
  const layer = track.layer ? ` (${track.layer + 1})` : '';
  writer.meta(0x03, latin(instrumentName(track.program, track.isDrum) + layer));
  // At equal ticks: offs (0), program changes (1), ons (2), each by pitch.
  const events = [
    ...track.spans.map((span) => [span.end, 0, span.pitch, 0, span.channel]),
    ...track.changes.map(([tick, channel]) => [tick, 1, 0, 0, channel]),
    ...track.spans.map((span) => [span.start, 2, span.pitch, span.velocity, span.channel]),
  ].sort(compare);
  for (const event of events) {
    const [tick, kind, pitch, velocity, channel] = /** @type {number[]} */ (event);
    const status = [0x80, 0xc0, 0x90][kind ?? 0] ?? 0;
    const data = kind === 1 ? [track.program] : [pitch ?? 0, velocity ?? 0];
    writer.message(tick ?? 0, status | (channel ?? 0), data);
  }
  return writer.chunk();
}

/** Bytes of one track, with running status. */
class TrackWriter {
  constructor() {
    /** @type {number[]} */
    this.bytes = [];
    this.now = 0;
    this.status = 0;
  }

  /**
   * @param {number} type
   * @param {ArrayLike<number>} data
   */
  meta(type, data) {
    this.bytes.push(0, 0xff, type, ...variable(data.length), ...Array.from(data));
    this.status = 0;
  }

  /**
   * @param {number} tick
   * @param {number} status
   * @param {number[]} data
   */
  message(tick, status, data) {
    this.bytes.push(...variable(tick - this.now));
    if (status !== this.status) this.bytes.push(status);
    this.bytes.push(...data);
    this.now = tick;
    this.status = status;
  }

  chunk() {
    this.meta(0x2f, []);
    const size = this.bytes.length;
    return concat([latin('MTrk'), [...word(size >>> 16), ...word(size & 0xffff)], this.bytes]);
  }
}

/** @param {number} value */
function variable(value) {
  const bytes = [value & 127];
  for (let rest = value >>> 7; rest; rest >>>= 7) bytes.unshift((rest & 127) | 128);
  return bytes;
}

/** @param {number} value */
const word = (value) => [(value >> 8) & 255, value & 255];

/** @param {string} text */
const latin = (text) => Array.from(text, (character) => character.charCodeAt(0));

/** @param {ArrayLike<number>[]} parts */
function concat(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
