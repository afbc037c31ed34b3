/**
 * The manifest `bundle.json` of a model as typed data (docs/bundle-format.md).
 */
import { Mt3Error } from './errors.js';

/**
 * @typedef {{kind: string, first_id: number, min_value: number, max_value: number}} EventRange
 * @typedef {{size: number, steps_per_second: number, pad: number, eos: number, unk: number,
 *   ranges: EventRange[]}} Vocabulary
 * @typedef {{assembly: string, ties: boolean, velocity_bins: number, minimum_duration: number,
 *   drum_duration: number, initial_program: number, initial_velocity: number,
 *   flat_programs: boolean, general_midi: [number, number][], quirks: string[]}} NoteRules
 * @typedef {{sample_rate: number, samples: number, hop: number, time_grid: number | null,
 *   padding: string}} SegmentConfig
 * @typedef {{sample_rate: number, frames: number, hop: number, fft_size: number, bins: number,
 *   framing: string, power: number, filters: string, low_hz: number | null,
 *   high_hz: number | null, floor: number, floor_rule: string, scaling: string,
 *   scale_low: number | null, scale_high: number | null}} FeatureConfig
 * @typedef {{bias: number, onset: number, pitch: number, program: number, offset: number}} Weights
 * @typedef {{role: string, profile: string, file: string, sha256: string, size: number,
 *   inputs: string[], outputs: string[]}} GraphFile
 * @typedef {{format: string, version: number, export_id: string, name: string, licence: string,
 *   features: FeatureConfig, segments: SegmentConfig, vocabulary: Vocabulary, notes: NoteRules,
 *   confidence: {pitched: Weights, drums: Weights} | null,
 *   decoding: {eos_id: number, max_tokens: number}, graphs: GraphFile[]}} Manifest
 */

/**
 * Reads the manifest of a bundle with one graph of the whole model.
 * @param {string} text content of `bundle.json`
 * @returns {Manifest}
 */
export function parseManifest(text) {
  /** @type {Manifest} */
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw new Mt3Error(`bundle.json is no JSON (${error}); copy the model's folder again.`);
  }
  if (manifest?.format !== 'mt3-runtime.bundle' || manifest.version !== 1) {
    throw new Mt3Error(
      `bundle.json is of format ${manifest?.format} ${manifest?.version}; expected ` +
        'mt3-runtime.bundle 1. Use the page and the model of one version.',
    );
  }
  completeGraph(manifest);
  if (manifest.notes.assembly !== 'magenta') {
    throw new Mt3Error(`Notes of ${manifest.name} are joined in a way that is not here.`);
  }
  return manifest;
}

/**
 * The entry of the one graph.
 * @param {Manifest} manifest
 * @returns {GraphFile}
 */
export function completeGraph(manifest) {
  const graph = (manifest.graphs ?? []).find(({ role }) => role === 'complete');
  if (!graph) {
    throw new Mt3Error(
      'The model has no graph of role complete; make it with: ' +
        `mt3 export ${manifest.name} --single-file -o FOLDER`,
    );
  }
  return graph;
}
