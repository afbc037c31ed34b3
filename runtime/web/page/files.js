/**
 * Files of notes to download: MIDI, and the JSON and CSV that `mt3` reads and writes.
 */
import { byOnset, instrumentName, Mt3Error, toMidi } from '../src/index.js';
import { splitStems, zip } from './stems.js';

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
 * Hands notes to the person as a file; stems are MIDI files in an archive.
 * @param {'midi' | 'json' | 'csv' | 'stems'} kind
 * @param {Note[]} notes
 * @param {{name: string, model: string, duration: number}} about
 */
export function save(kind, notes, { name, model, duration }) {
  const midi = (/** @type {Note[]} */ some) => /** @type {Uint8Array<ArrayBuffer>} */ (toMidi(some));
  if (kind === 'midi') {
    download(`${name}.mid`, midi(notes), 'audio/midi');
  } else if (kind === 'stems') {
    const files = splitStems(notes).map(
      ([stem, some]) => /** @type {[string, Uint8Array]} */ ([`${stem}.mid`, midi(some)]),
    );
    download(`${name}.stems.zip`, zip(files), 'application/zip');
  } else if (kind === 'json') {
    download(`${name}.json`, toJson(notes, model, duration), 'application/json');
  } else {
    download(`${name}.csv`, toCsv(notes), 'text/csv');
  }
}

/**
 * Notes of a JSON file that `mt3` or this page wrote.
 * @param {string} text
 * @returns {{notes: Note[], model: string}}
 */
export function fromJson(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    document = null;
  }
  if (document?.format !== 'mt3-runtime.notes' || !Array.isArray(document.notes)) {
    throw new Mt3Error('This is no file of notes. Choose one that was made by Download JSON or mt3.');
  }
  const numbers = ['onset', 'offset', 'pitch', 'velocity', 'program', 'confidence'];
  const notes = document.notes.map((/** @type {any} */ written, /** @type {number} */ i) => {
    if (numbers.some((name) => !Number.isFinite(written?.[name]))) {
      throw new Mt3Error(`Note ${i} of the file lacks a number; download or write the file again.`);
    }
    const { is_drum: isDrum, instrument: _, ...note } = written;
    return { ...note, isDrum: Boolean(isDrum) };
  });
  return { notes: byOnset(notes), model: String(document.model ?? '') };
}
