/**
 * Tokens and log-probabilities of segments: one session of ONNX Runtime with the one graph.
 */
import { Mt3Error } from './errors.js';
import { FeatureExtractor } from './features.js';
import { completeGraph } from './manifest.js';

/**
 * @typedef {{tokens: Int32Array, logProbs: Float32Array}} Sequence
 * @typedef {import('./segments.js').Segment} Segment
 * @typedef {import('./manifest.js').Manifest} Manifest
 * @typedef {{data: any, dims: readonly number[]}} AnyTensor
 * @typedef {{run: (feeds: Record<string, any>) => Promise<Record<string, AnyTensor>>,
 *   release: () => Promise<void>}} Session
 * @typedef {object} Ort `onnxruntime-web` or `onnxruntime-node`
 * @property {{create: (data: any, options?: any) => Promise<any>}} InferenceSession
 * @property {new (type: any, data: any, dims: readonly number[]) => any} Tensor
 */

export class SegmentDecoder {
  /**
   * @param {Ort} ort
   * @param {Session} session
   * @param {Manifest} manifest
   */
  constructor(ort, session, manifest) {
    this.ort = ort;
    this.session = session;
    this.manifest = manifest;
    this.graph = completeGraph(manifest);
    const reads = this.graph.inputs.includes('features');
    this.extractor = reads ? new FeatureExtractor(manifest.features) : null;
  }

  /**
   * Loads the graph of a model.
   * @param {Ort} ort
   * @param {Manifest} manifest
   * @param {Uint8Array} graph content of the graph's file
   * @param {string} provider name of an execution provider
   */
  static async load(ort, manifest, graph, provider = 'wasm') {
    const { size, file } = completeGraph(manifest);
    if (graph.length !== size) {
      throw new Mt3Error(
        `${file} has ${graph.length} bytes; its manifest says ${size}. Load the page again, or ` +
          "copy the model's folder again.",
      );
    }
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: [provider],
      intraOpNumThreads: 1,
      logSeverityLevel: 3,
    });
    return new SegmentDecoder(ort, session, manifest);
  }

  /**
   * Decodes segments together.
   * @param {Segment[]} segments
   * @returns {Promise<Sequence[]>}
   */
  async decode(segments) {
    const feeds = this.#feeds(segments);
    const { tokens, log_probs: logProbs } = await this.session.run(feeds);
    if (!tokens || !logProbs) throw new Mt3Error('The graph gave no tokens; export it again.');
    const steps = tokens.dims[1] ?? 0;
    return segments.map((_, row) => {
      const ids = Int32Array.from(
        { length: steps },
        (_, step) => Number(tokens.data[row * steps + step]), // int64 arrives as BigInt
      );
      const end = ids.indexOf(-1);
      const count = end < 0 ? steps : end;
      const from = row * steps;
      return {
        tokens: ids.slice(0, count),
        logProbs: Float32Array.from(logProbs.data.subarray(from, from + count)),
      };
    });
  }

  /** Frees the memory of the session. */
  async release() {
    await this.session.release();
  }

  /** @param {Segment[]} segments */
  #feeds(segments) {
    const rows = segments.length;
    const { Tensor } = this.ort;
    const integers = (/** @type {number[]} */ values) =>
      new Tensor('int64', BigInt64Array.from(values, BigInt), [rows]);
    /** @type {Record<string, () => any>} */
    const made = {
      samples: () => {
        const size = this.manifest.segments.samples;
        const data = new Float32Array(rows * size);
        segments.forEach(({ samples }, row) => data.set(samples, row * size));
        return new Tensor('float32', data, [rows, size]);
      },
      features: () => {
        const { frames, bins } = this.manifest.features;
        const data = new Float32Array(rows * frames * bins);
        segments.forEach((segment, row) => {
          const out = data.subarray(row * frames * bins, (row + 1) * frames * bins);
          this.extractor?.compute(segment.samples, segment.frames, out);
        });
        return new Tensor('float32', data, [rows, frames, bins]);
      },
      frames: () => integers(segments.map(({ frames }) => frames)),
      index: () => integers(segments.map(({ index }) => index)),
      last: () =>
        new Tensor(
          'bool',
          Uint8Array.from(segments, ({ nextStart }) => Number(nextStart === null)),
          [rows],
        ),
    };
    return Object.fromEntries(
      this.graph.inputs.map((name) => {
        const make = made[name];
        if (!make) throw new Mt3Error(`The graph reads ${name}, which this version does not know.`);
        return [name, make()];
      }),
    );
  }
}
