/**
 * Cuts samples into a model's segments and gives their start times, as
 * `mt3_runtime.audio.segments` does.
 */

/** @typedef {import('./manifest.js').SegmentConfig} SegmentConfig */
/**
 * @typedef {object} Segment
 * @property {number} index 0, 1, 2, ...
 * @property {number} start seconds, on the model's grid
 * @property {number | null} nextStart start of the next segment, null for the last
 * @property {Float32Array} samples a full segment, with zeros behind the end of the audio
 * @property {number} frames hops that belong to the audio
 */

/**
 * Start time of a segment in seconds, rounding errors of the original included.
 * @param {number} index
 * @param {SegmentConfig} config
 */
export function startOf(index, config) {
  const seconds = (index * config.samples) / config.sample_rate;
  return config.time_grid === null ? seconds : seconds - (seconds % config.time_grid);
}

/**
 * Number of segments of so many samples.
 * @param {number} length
 * @param {SegmentConfig} config
 */
export function countSegments(length, config) {
  if (length === 0) return 0;
  const extra = config.padding === 'extra_hop';
  return extra ? Math.floor(length / config.samples) + 1 : Math.ceil(length / config.samples);
}

/**
 * One segment of a recording.
 * @param {Float32Array} audio mono, at the model's rate
 * @param {number} index
 * @param {SegmentConfig} config
 * @returns {Segment}
 */
export function segmentAt(audio, index, config) {
  const size = config.samples;
  const part = audio.subarray(index * size, (index + 1) * size);
  const samples = new Float32Array(size);
  samples.set(part);
  const last = index + 1 === countSegments(audio.length, config);
  const short = last && config.padding === 'extra_hop';
  return {
    index,
    start: startOf(index, config),
    nextStart: last ? null : startOf(index + 1, config),
    samples,
    frames: short ? Math.floor(part.length / config.hop) + 1 : Math.ceil(size / config.hop),
  };
}
