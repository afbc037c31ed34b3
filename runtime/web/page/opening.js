/**
 * Transcribes files, here or on the server: one recording, or several files that are its stems.
 */
import { byOnset, calibrated, readRecording } from '../src/index.js';
import { changesOf } from './leakage.js';
import { stemOfFile, within, written } from './lineup.js';

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {import('./lineup.js').Lineup} Lineup
 * @typedef {import('./leakage.js').Change} Change
 * @typedef {{notes: Note[], changes: Change[], model: string, remarks: string[]}} Part
 *
 * @typedef {object} Told what is told while it goes on
 * @property {AbortSignal} signal
 * @property {(text: string) => void} say
 * @property {(samples: Float32Array, rate: number, exactness: string) => void} begin
 * @property {(notes: Note[]) => void} more notes that were found
 * @property {(share: number, where: string) => void} progress 0..1
 */

/** Rate at which recordings are drawn and played, if a server transcribes them [Hz]. */
const PLAYED = 16_000;

const EXACTNESS = {
  exact: 'This WAV file was read exactly; it was resampled nearly as mt3 does (66 dB below the signal).',
  browser: 'This file was read by the browser; notes can differ a little from those of mt3 transcribe.',
  server: 'Transcribed by the server: these are the notes of mt3 transcribe.',
};

export class Opener {
  /**
   * @param {import('./engine.js').LocalEngine} engine
   * @param {import('./server.js').ServerEngine | null} server
   */
  constructor(engine, server) {
    this.engine = engine;
    this.server = server;
  }

  /**
   * Transcribes files from the bytes to the notes.
   * @param {File[]} files one recording, or its stems: each has the instruments of its name
   * @param {{lineup: Lineup | null, query: Record<string, string>}} options
   * @param {Told} told
   * @returns {Promise<Part>}
   */
  async open(files, { lineup, query }, told) {
    if (!this.server) told.say('Loading the model (15 MB, once).');
    const manifest = this.server ? null : await this.engine.load();
    told.signal.throwIfAborted();
    const rate = manifest ? manifest.segments.sample_rate : PLAYED;
    const read = [];
    for (const file of files) {
      told.say(`Reading ${file.name}.`);
      read.push(await readRecording(file, rate));
      told.signal.throwIfAborted();
    }
    const isExact = read.every(({ reader }) => reader === 'exact');
    const exactness = manifest ? (isExact ? 'exact' : 'browser') : 'server';
    told.begin(sum(read.map(({ samples }) => samples)), rate, EXACTNESS[exactness]);
    const parts = [];
    for (const [i, file] of files.entries()) {
      const stem = files.length > 1 ? stemOfFile(file.name) : null;
      const share = (/** @type {number} */ done) => (i + done) / files.length;
      const where = files.length > 1 ? `${file.name} (${stem?.stem ?? 'all instruments'}), ` : '';
      const progress = (/** @type {number} */ done, /** @type {string} */ at) =>
        told.progress(share(done), where + at);
      const samples = /** @type {Float32Array} */ (read[i]?.samples);
      const how = { lineup: stem?.lineup ?? lineup, query, told: { ...told, progress } };
      const part = manifest
        ? await this.#here(samples, manifest, how)
        : await this.#there(file, how);
      told.signal.throwIfAborted();
      parts.push(part);
    }
    return {
      notes: byOnset(parts.flatMap(({ notes }) => notes)),
      changes: parts.flatMap(({ changes }) => changes),
      model: parts[0]?.model ?? '',
      remarks: [...new Set(parts.flatMap(({ remarks }) => remarks))],
    };
  }

  /**
   * @param {Float32Array} samples
   * @param {import('../src/manifest.js').Manifest} manifest
   * @param {{lineup: Lineup | null, told: Told}} how
   * @returns {Promise<Part>}
   */
  async #here(samples, manifest, { lineup, told }) {
    const finished = (/** @type {Note[]} */ notes) =>
      within(notes, lineup).map((note) => ({ ...note, confidence: calibrated(note, manifest) }));
    told.say(`Transcribing ${(samples.length / manifest.segments.sample_rate).toFixed(1)} seconds.`);
    const result = await this.engine.transcribe(samples, manifest, {
      signal: told.signal,
      progress: ({ done, total, notes }) => {
        if (told.signal.aborted) return;
        told.more(finished(notes));
        told.progress(done / total, `segment ${done} of ${total}`);
      },
    });
    const cut = result.segments.filter(({ truncated }) => truncated).length;
    const remarks = [...this.engine.remarks];
    if (cut) remarks.push(`${cut} segments reached the token limit and may lack notes`);
    return { notes: finished(result.notes), changes: [], model: manifest.name, remarks };
  }

  /**
   * @param {File} file
   * @param {{lineup: Lineup | null, query: Record<string, string>, told: Told}} how
   * @returns {Promise<Part>}
   */
  async #there(file, { lineup, query, told }) {
    told.say('Waiting for the server.');
    /** @type {Note[]} */
    const heard = [];
    const server = /** @type {import('./server.js').ServerEngine} */ (this.server);
    const { notes, changes, model, warnings } = await server.transcribe(file, {
      query: lineup ? { ...query, instruments: written(lineup) } : query,
      signal: told.signal,
      say: told.say,
      progress: ({ done, notes: more }) => {
        heard.push(...more);
        told.more(more);
        if (done >= 0) told.progress(done, `${Math.round(done * 100)} %`);
      },
    });
    return { notes, changes: changesOf(changes, notes, heard), model, remarks: warnings };
  }
}

/**
 * Stems together.
 * @param {Float32Array[]} stems
 */
function sum(stems) {
  const [first, ...rest] = stems;
  if (!first || !rest.length) return first ?? new Float32Array();
  const out = new Float32Array(Math.max(...stems.map(({ length }) => length)));
  for (const stem of stems) {
    for (const [i, sample] of stem.entries()) out[i] = /** @type {number} */ (out[i]) + sample;
  }
  return out;
}
