/**
 * Resamples mono samples with a Kaiser-windowed sinc in float64.
 *
 * Passband and attenuation are those of soxr's "HQ", which `mt3_runtime` uses: on white noise the
 * two differ by 66 dB below the signal, from 8 to 96 kHz, mostly in the transition band.
 */

/** End of the passband as a part of the lower Nyquist frequency; the stop band begins at 1. */
const PASSBAND = 0.9137;
/** Attenuation of the stop band [dB]. */
const ATTENUATION = 131;
/** Kaiser's estimates of the shape and the length of the window for an attenuation. */
const BETA = 0.1102 * (ATTENUATION - 8.7);
const WIDTH = (ATTENUATION - 7.95) / (2.285 * 2 * Math.PI);

/**
 * Resamples a recording.
 * @param {Float32Array} samples
 * @param {number} from rate of the samples [Hz], a whole number
 * @param {number} to rate wanted [Hz], a whole number
 * @returns {Float32Array} ceil(n * to / from) samples
 */
export function resample(samples, from, to) {
  if (from === to) return samples;
  const divisor = greatestDivisor(from, to);
  const up = to / divisor;
  const down = from / divisor;
  const kernels = new Map();
  const out = new Float32Array(Math.ceil((samples.length * to) / from));
  for (let i = 0; i < out.length; i++) {
    const phase = (i * down) % up;
    const centre = (i * down - phase) / up;
    let kernel = kernels.get(phase);
    if (!kernel) kernels.set(phase, (kernel = makeKernel(phase / up, from, to)));
    const first = centre - (kernel.length - 1) / 2;
    const start = Math.max(0, -first);
    const end = Math.min(kernel.length, samples.length - first);
    let sum = 0;
    for (let k = start; k < end; k++) sum += kernel[k] * /** @type {number} */ (samples[first + k]);
    out[i] = sum;
  }
  return out;
}

/**
 * Taps of one phase, whose sum is 1.
 * @param {number} offset of the output behind the middle tap, in input samples, 0..1
 * @param {number} from
 * @param {number} to
 */
function makeKernel(offset, from, to) {
  const nyquist = Math.min(from, to) / 2;
  const cut = ((1 + PASSBAND) * nyquist) / from; // both sides, as a part of the input's rate
  const half = Math.ceil((WIDTH * from) / ((1 - PASSBAND) * nyquist) / 2);
  const kernel = new Float64Array(2 * half + 1);
  let sum = 0;
  for (let k = -half; k <= half; k++) {
    const t = k - offset;
    const x = Math.PI * cut * t;
    const place = 1 - (t / (half + 1)) ** 2;
    const value = (x === 0 ? 1 : Math.sin(x) / x) * bessel(BETA * Math.sqrt(Math.max(0, place)));
    kernel[k + half] = value;
    sum += value;
  }
  return kernel.map((value) => value / sum);
}

/**
 * The modified Bessel function of order 0.
 * @param {number} x
 */
function bessel(x) {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > sum * 1e-17; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
const greatestDivisor = (a, b) => (b === 0 ? a : greatestDivisor(b, a % b));
