/**
 * Transcribes on the server that gave out the page (`mt3 serve`): the file goes there, and notes
 * come back as segments complete.
 */
import { byOnset, Mt3Error } from '../src/index.js';

/** Waits for a server that is busy: this often, and this long if it does not say [s]. */
const TRIES = 5;
const PATIENCE = 3;

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {import('../src/assembler.js').Probabilities} Probabilities
 * @typedef {{onset: number, offset: number, pitch: number, velocity: number, program: number,
 *   is_drum: boolean, confidence: number, probabilities: Probabilities}} WrittenNote
 * @typedef {{done: number, notes: Note[]}} ServerProgress done: 0..1
 */

/**
 * A note as the page has it.
 * @param {WrittenNote} written
 * @returns {Note}
 */
function noteOf({ is_drum: isDrum, ...note }) {
  return { ...note, isDrum };
}

export class ServerEngine {
  /**
   * Names of the models of the server, its first one first; null if none is there that transcribes.
   * @returns {Promise<string[] | null>}
   */
  static async found() {
    try {
      const response = await fetch('v1/models');
      if (!response.ok) return null;
      const { default: first, models } = await response.json();
      const names = models.map((/** @type {{name: string}} */ { name }) => name);
      return [...new Set([...(first ? [first] : []), ...names])];
    } catch {
      return null;
    }
  }

  /**
   * @param {Blob} file
   * @param {{query: Record<string, string>, progress: (progress: ServerProgress) => void,
   *   say: (text: string) => void, signal: AbortSignal}} options
   * @returns {Promise<{notes: Note[], model: string, warnings: string[], duration: number,
   *   changes: import('./leakage.js').Written[]}>}
   */
  async transcribe(file, { query, progress, say, signal }) {
    const response = await this.#ask(file, query, say, signal);
    /** @type {Map<number, Note>} */
    const sounding = new Map();
    for await (const event of lines(response, signal)) {
      if (event.type === 'note_on') {
        sounding.set(event.number, begun(event));
      } else if (event.type === 'note_off') {
        const note = sounding.get(event.number);
        sounding.delete(event.number);
        if (note && event.kept) progress({ done: -1, notes: [{ ...note, offset: event.time }] });
      } else if (event.type === 'progress') {
        const done = event.seconds_total ? event.seconds_done / event.seconds_total : -1;
        progress({ done, notes: [] });
      } else if (event.type === 'error') {
        throw new Mt3Error(`The server gave up: ${event.message}`);
      } else if (event.type === 'done') {
        const { notes, model, warnings, duration, leakage } = event.result;
        const changes = leakage?.changes ?? [];
        return { notes: byOnset(notes.map(noteOf)), model, warnings, duration, changes };
      }
    }
    throw ended();
  }

  /**
   * Sends the file; waits while the server is busy.
   * @param {Blob} file
   * @param {Record<string, string>} query options of a transcription
   * @param {(text: string) => void} say
   * @param {AbortSignal} signal
   */
  async #ask(file, query, say, signal) {
    const options = new URLSearchParams(query).toString();
    const headers = { accept: 'application/x-ndjson', 'content-type': 'application/octet-stream' };
    for (let attempt = 1; ; attempt++) {
      let response;
      try {
        const request = { method: 'POST', body: file, headers, signal };
        response = await fetch(`v1/transcriptions${options && `?${options}`}`, request);
      } catch (error) {
        signal.throwIfAborted();
        throw new Mt3Error(`The server cannot be reached (${error}). Is mt3 serve still running?`);
      }
      if (response.ok) return response;
      const busy = response.status === 429 || response.status === 503;
      if (!busy || attempt === TRIES) throw new Mt3Error(await reason(response));
      const wait = Number(response.headers.get('retry-after')) || PATIENCE;
      say(`The server is busy; asking again in ${wait} seconds.`);
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      signal.throwIfAborted();
    }
  }
}

/**
 * @param {{time: number, pitch: number, velocity: number, program: number, is_drum: boolean}} event
 * @returns {Note}
 */
function begun({ time, pitch, velocity, program, is_drum: isDrum }) {
  const probabilities = { onset: null, pitch: null, program: null, offset: null };
  const note = { onset: time, offset: time, pitch, velocity, program, isDrum };
  return { ...note, confidence: 1, probabilities };
}

/** @param {Response} response */
async function reason(response) {
  const text = await response.text();
  try {
    return `The server refused the file: ${JSON.parse(text).message}`;
  } catch {
    return `The server refused the file (${response.status}).`;
  }
}

const ended = () =>
  new Mt3Error('The server ended in the middle. Start it again, then open the file again.');

/**
 * Objects of a response, one a line, as they come.
 * @param {Response} response
 * @param {AbortSignal} signal
 */
async function* lines(response, signal) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const read = () =>
    reader.read().catch(() => {
      signal.throwIfAborted();
      throw ended();
    });
  let rest = '';
  for (let part = await read(); !part.done; part = await read()) {
    const whole = (rest + part.value).split('\n');
    rest = whole.pop() ?? '';
    for (const line of whole) if (line.trim()) yield JSON.parse(line);
  }
  if (rest.trim()) yield JSON.parse(rest);
}
