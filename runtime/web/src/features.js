/**
 * Log-mel features of segments in float64, as `mt3_runtime.audio.log_mel` computes them: leading
 * frames, triangles on the mel axis.  For graphs that read features, because products in double
 * precision are slow in WebAssembly.
 */
import { Mt3Error } from './errors.js';

/** @typedef {import('./manifest.js').FeatureConfig} FeatureConfig */

export class FeatureExtractor {
  /** @param {FeatureConfig} config */
  constructor(config) {
    const known =
      config.framing === 'leading' &&
      config.filters === 'triangles_in_mel' &&
      config.power === 1 &&
      config.floor_rule === 'replace' &&
      config.scaling === 'none' &&
      (config.fft_size & (config.fft_size - 1)) === 0;
    if (!known) {
      throw new Mt3Error(
        'These features are not here; export the model with --single-file, whose graph reads samples.',
      );
    }
    this.config = config;
    this.window = hannWindow(config.fft_size);
    this.filters = melFilters(config);
    this.fft = new RealFft(config.fft_size);
    this.floor = Math.fround(Math.log(Math.fround(config.floor)));
  }

  /**
   * Features of a segment.
   * @param {Float32Array} samples a full segment
   * @param {number} frames hops that belong to the audio; rows behind stay 0
   * @param {Float32Array} out frames * bins numbers
   */
  compute(samples, frames, out) {
    const { hop, fft_size: size, bins } = this.config;
    const frame = new Float64Array(size);
    const magnitudes = new Float32Array(size / 2 + 1);
    for (let row = 0; row < frames; row++) {
      for (let i = 0; i < size; i++) {
        const sample = samples[row * hop + i] ?? 0;
        frame[i] = Math.fround(sample * /** @type {number} */ (this.window[i]));
      }
      this.fft.magnitudes(frame, magnitudes);
      for (let bin = 0; bin < bins; bin++) {
        const { first, weights } = /** @type {Filter} */ (this.filters[bin]);
        let sum = 0;
        for (let i = 0; i < weights.length; i++) {
          sum += /** @type {number} */ (magnitudes[first + i]) * /** @type {number} */ (weights[i]);
        }
        out[row * bins + bin] = sum > 0 ? Math.log(sum) : this.floor;
      }
    }
  }
}

/** @param {number} size */
function hannWindow(size) {
  const window = new Float32Array(size);
  const turn = Math.fround(2 * Math.PI);
  for (let i = 0; i < size; i++) {
    const phase = Math.fround(Math.fround(turn * i) / size);
    window[i] = 0.5 - Math.fround(0.5 * Math.fround(Math.cos(phase)));
  }
  return window;
}

/** @typedef {{first: number, weights: Float32Array}} Filter */

/**
 * Triangles on the mel axis in float32, as TensorFlow's `linear_to_mel_weight_matrix`.
 * @param {FeatureConfig} config
 * @returns {Filter[]}
 */
function melFilters({ sample_rate, fft_size, bins, low_hz, high_hz }) {
  const f = Math.fround;
  const mel = (/** @type {number} */ hertz) =>
    f(f(1127) * f(Math.log(f(1 + f(f(hertz) / 700)))));
  const step = sample_rate / 2 / (fft_size / 2);
  const positions = Array.from({ length: fft_size / 2 + 1 }, (_, i) => (i ? mel(i * step) : 0));
  const low = mel(low_hz ?? 0);
  const width = f(f(mel(high_hz ?? 0) - low) / f(bins + 1));
  const edges = Array.from({ length: bins + 2 }, (_, i) => f(low + f(width * i)));
  return Array.from({ length: bins }, (_, bin) => {
    const [left, centre, right] = /** @type {[number, number, number]} */ (
      edges.slice(bin, bin + 3)
    );
    const weight = (/** @type {number} */ position) =>
      Math.min(
        f(f(position - left) / f(centre - left)),
        f(f(right - position) / f(right - centre)),
      );
    const used = [];
    for (let i = 1; i < positions.length; i++) {
      if (weight(/** @type {number} */ (positions[i])) > 0) used.push(i);
    }
    const first = used[0] ?? 0;
    const weights = used.map((i) => weight(/** @type {number} */ (positions[i])));
    return { first, weights: Float32Array.from(weights) };
  });
}

/** Fourier transform of real signals through a complex one of half the size. */
class RealFft {
  /** @param {number} size a power of two */
  constructor(size) {
    this.half = size / 2;
    this.cos = Float64Array.from({ length: size }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = Float64Array.from({ length: size }, (_, i) => Math.sin((2 * Math.PI * i) / size));
    this.re = new Float64Array(this.half);
    this.im = new Float64Array(this.half);
    const bits = Math.log2(this.half);
    this.reversed = Uint32Array.from({ length: this.half }, (_, i) => {
      let result = 0;
      for (let bit = 0; bit < bits; bit++) result |= ((i >> bit) & 1) << (bits - 1 - bit);
      return result;
    });
  }

  /**
   * @param {Float64Array} signal
   * @param {Float32Array} out magnitudes of 0 .. size / 2
   */
  magnitudes(signal, out) {
    const { half, re, im, cos, sin, reversed } = this;
    for (let i = 0; i < half; i++) {
      const at = /** @type {number} */ (reversed[i]);
      re[at] = /** @type {number} */ (signal[2 * i]);
      im[at] = /** @type {number} */ (signal[2 * i + 1]);
    }
    this.#butterflies();
    for (let k = 0; k <= half; k++) {
      const a = k % half;
      const b = (half - k) % half;
      const [ra, ia, rb, ib] = /** @type {number[]} */ ([re[a], im[a], re[b], im[b]]);
      const evenRe = (/** @type {number} */ (ra) + /** @type {number} */ (rb)) / 2;
      const evenIm = (/** @type {number} */ (ia) - /** @type {number} */ (ib)) / 2;
      const oddRe = (/** @type {number} */ (ia) + /** @type {number} */ (ib)) / 2;
      const oddIm = (/** @type {number} */ (rb) - /** @type {number} */ (ra)) / 2;
      const c = /** @type {number} */ (cos[k]);
      const s = /** @type {number} */ (sin[k]);
      const real = evenRe + oddRe * c + oddIm * s;
      const imaginary = evenIm + oddIm * c - oddRe * s;
      out[k] = Math.sqrt(real * real + imaginary * imaginary);
    }
  }

  #butterflies() {
    const { half, re, im, cos, sin } = this;
    for (let span = 1; span < half; span *= 2) {
      const stride = half / span;
      for (let block = 0; block < half; block += 2 * span) {
        for (let i = 0; i < span; i++) {
          const c = /** @type {number} */ (cos[i * stride]);
          const s = /** @type {number} */ (sin[i * stride]);
          const a = block + i;
          const b = a + span;
          const xr = /** @type {number} */ (re[b]) * c + /** @type {number} */ (im[b]) * s;
          const xi = /** @type {number} */ (im[b]) * c - /** @type {number} */ (re[b]) * s;
          const ar = /** @type {number} */ (re[a]);
          const ai = /** @type {number} */ (im[a]);
          re[b] = ar - xr;
          im[b] = ai - xi;
          re[a] = ar + xr;
          im[a] = ai + xi;
        }
      }
    }
  }
}
