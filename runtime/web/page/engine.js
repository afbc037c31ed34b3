/**
 * Transcribes on the machine of the browser: workers that share the segments of a recording.
 */
import { Mt3Error, transcribe } from '../src/index.js';

/** Copies of the weights in memory; more do not pay off. */
const MAX_WORKERS = 4;

/** A module of one function that makes a vector: valid where there is SIMD. */
const SIMD = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0], // header
  ...[1, 5, 1, 96, 0, 1, 123], // types: a function that returns a v128
  ...[3, 2, 1, 0], // functions: one, of type 0
  ...[10, 8, 1, 6, 0, 65, 0, 253, 15, 11], // code: i32.const 0, i8x16.splat
);

/**
 * @typedef {import('../src/manifest.js').Manifest} Manifest
 * @typedef {import('../src/decoder.js').Sequence} Sequence
 * @typedef {import('../src/segments.js').Segment} Segment
 */

/** A decoder on a thread of its own. */
class RemoteDecoder {
  /**
   * @param {string} model
   * @param {boolean} gpu
   * @param {(remark: string) => void} tell
   */
  constructor(model, gpu, tell) {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.next = 0;
    /** @type {Map<number, {resolve: (s: Sequence[]) => void, reject: (e: Error) => void}>} */
    this.waiting = new Map();
    /** @type {Promise<Manifest>} */
    this.loaded = new Promise((resolve, reject) => {
      this.worker.addEventListener('error', () => {
        const why = 'The part that computes ended: this browser is too old, or short of memory.';
        reject(new Mt3Error(why));
        this.close(new Mt3Error(why));
      });
      this.worker.addEventListener('message', ({ data }) => {
        if (data.remark) tell(data.remark);
        else if (data.manifest) resolve(data.manifest);
        else if (data.id === undefined) reject(new Mt3Error(data.error));
        else this.#answer(data);
      });
    });
    this.worker.postMessage({ load: model, gpu });
  }

  /** @param {{id: number, sequences?: Sequence[], error?: string}} answer */
  #answer({ id, sequences, error }) {
    const waiting = this.waiting.get(id);
    this.waiting.delete(id);
    if (sequences) waiting?.resolve(sequences);
    else waiting?.reject(new Mt3Error(`The model could not be run: ${error}`));
  }

  /**
   * Ends the thread; what was asked of it fails.
   * @param {Error} error
   */
  close(error) {
    this.worker.terminate();
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
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
    this.gpu = false;
    /** @type {string[]} what is to be said of how it was computed */
    this.remarks = [];
  }

  /**
   * Computes on the graphics processor from now on, or no more.
   * @param {boolean} gpu
   */
  useGpu(gpu) {
    if (gpu !== this.gpu) this.close();
    this.gpu = gpu;
  }

  /** Loads the model, once. */
  async load() {
    if (typeof WebAssembly === 'undefined' || !WebAssembly.validate(SIMD)) {
      throw new Mt3Error(
        'This browser has no WebAssembly with SIMD. Use one of 2023 or later, or mt3 transcribe.',
      );
    }
    const tell = (/** @type {string} */ remark) => this.remarks.push(remark);
    while (this.decoders.length < (this.gpu ? 1 : this.wanted)) {
      this.decoders.push(new RemoteDecoder(this.model, this.gpu, tell));
    }
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
    for (const decoder of this.decoders) decoder.close(new DOMException('Stopped', 'AbortError'));
    this.decoders = [];
    this.remarks = [];
  }
}
