/**
 * Files of notes to download: MIDI, and the JSON and CSV that `mt3` reads and writes.
 */
import { instrumentName, toMidi } from '../src/index.js';

/** @typedef {import('../src/assembler.js').Note} Note */

const round = (/** @type {number | null} */ value) =>
  value === null ? null : Math.round(value * 1e6) / 1e6;

/**
 * @param {Note[]} notes
 * @param {string} model
 * @param {number} duration seconds
 */
export function toJson(notes, model, duration) {
  const written = notes.map((note) => ({
    onset: round(note.onset),
    offset: round(note.offset),
    pitch: note.pitch,
    velocity: note.velocity,
    program: note.program,
    instrument: instrumentName(note.program, note.isDrum),
    is_drum: note.isDrum,
    confidence: round(note.confidence),
    probabilities: Object.fromEntries(
      Object.entries(note.probabilities).map(([name, value]) => [name, round(value)]),
    ),
  }));
  const head = { format: 'mt3-runtime.notes', version: 1, model, duration };
  return JSON.stringify({ ...head, token_digest: '', warnings: [], notes: written });
}

/** @param {Note[]} notes */
export function toCsv(notes) {
  const lines = notes.map((note) =>
    [
      round(note.onset),
      round(note.offset),
      note.pitch,
      note.velocity,
      note.program,
      Number(note.isDrum),
      round(note.confidence),
    ].join(','),
  );
  return ['onset,offset,pitch,velocity,program,is_drum,confidence', ...lines, ''].join('\n');
}

/**
 * Hands a file to the person.
 * @param {string} name
 * @param {BlobPart} content
 * @param {string} type
 */
function download(name, content, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * @param {'midi' | 'json' | 'csv'} kind
 * @param {Note[]} notes
 * @param {{name: string, model: string, duration: number}} about
 */
export function save(kind, notes, { name, model, duration }) {
  if (kind === 'midi') {
    const bytes = /** @type {Uint8Array<ArrayBuffer>} */ (toMidi(notes));
    download(`${name}.mid`, bytes, 'audio/midi');
  } else if (kind === 'json') {
    download(`${name}.json`, toJson(notes, model, duration), 'application/json');
  } else {
    download(`${name}.csv`, toCsv(notes), 'text/csv');
  }
}
