/**
 * Transcribes on the machine of the browser: workers that share the segments of a recording.
 */
import { Mt3Error, transcribe } from '../src/index.js';

/** Copies of the weights in memory; more do not pay off. */
const MAX_WORKERS = 4;

/**
 * @typedef {import('../src/manifest.js').Manifest} Manifest
 * @typedef {import('../src/decoder.js').Sequence} Sequence
 * @typedef {import('../src/segments.js').Segment} Segment
 */

/** A decoder on a thread of its own. */
class RemoteDecoder {
  /** @param {string} model */
  constructor(model) {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.next = 0;
    /** @type {Map<number, {resolve: (s: Sequence[]) => void, reject: (e: Error) => void}>} */
    this.waiting = new Map();
    /** @type {Promise<Manifest>} */
    this.loaded = new Promise((resolve, reject) => {
      this.worker.addEventListener('error', () =>
        reject(new Mt3Error('The part that computes could not start: this browser is too old.')),
      );
      this.worker.addEventListener('message', ({ data }) => {
        if (data.manifest) resolve(data.manifest);
        else if (data.id === undefined) reject(new Mt3Error(data.error));
        else this.#answer(data);
      });
    });
    this.worker.postMessage({ load: model });
  }

  /** @param {{id: number, sequences?: Sequence[], error?: string}} answer */
  #answer({ id, sequences, error }) {
    const waiting = this.waiting.get(id);
    this.waiting.delete(id);
    if (sequences) waiting?.resolve(sequences);
    else waiting?.reject(new Mt3Error(`The model could not be run: ${error}`));
  }

  /**
   * @param {Segment[]} segments
   * @returns {Promise<Sequence[]>}
   */
  decode(segments) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, segments });
    });
  }
}

export class LocalEngine {
  /** @param {string} model address of the model's folder, with a slash */
  constructor(model) {
    this.model = model;
    const cores = navigator.hardwareConcurrency || 2;
    /** @type {RemoteDecoder[]} */
    this.decoders = [];
    this.wanted = Math.max(1, Math.min(cores, MAX_WORKERS));
  }

  /** Loads the model, once. */
  async load() {
    if (typeof WebAssembly === 'undefined') {
      throw new Mt3Error('This browser has no WebAssembly. Use a newer one, or mt3 transcribe.');
    }
    while (this.decoders.length < this.wanted) this.decoders.push(new RemoteDecoder(this.model));
    try {
      const [manifest] = await Promise.all(this.decoders.map(({ loaded }) => loaded));
      return /** @type {Manifest} */ (manifest);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * @param {Float32Array} samples
   * @param {Manifest} manifest
   * @param {{progress?: (p: import('../src/transcribe.js').Progress) => void,
   *   signal?: AbortSignal}} options
   */
  transcribe(samples, manifest, options) {
    const decoders = this.decoders.map((remote) => remote.decode.bind(remote));
    return transcribe(samples, manifest, decoders, options);
  }

  /** Ends the workers, whose memory never shrinks. */
  close() {
    for (const { worker } of this.decoders) worker.terminate();
    this.decoders = [];
  }
}
