/**
 * Notes of a recording, segment by segment, from any source of sequences.
 */
import { byOnset, NoteAssembler } from './assembler.js';
import { Mt3Error } from './errors.js';
import { countSegments, segmentAt } from './segments.js';

/**
 * @typedef {import('./assembler.js').Note} Note
 * @typedef {import('./assembler.js').SegmentReport} SegmentReport
 * @typedef {import('./decoder.js').Sequence} Sequence
 * @typedef {import('./segments.js').Segment} Segment
 * @typedef {{notes: Note[], segments: SegmentReport[], sequences: Sequence[],
 *   duration: number}} Transcription
 * @typedef {object} Progress
 * @property {number} done segments transcribed so far
 * @property {number} total
 * @property {Note[]} notes those that ended in the segment just done
 */

/** Segments that are decoded in one call: rows that ended wait for the others. */
export const ROWS = 4;

/**
 * Transcribes mono samples.
 * @param {Float32Array} audio at the model's rate
 * @param {import('./manifest.js').Manifest} manifest
 * @param {((segments: Segment[]) => Promise<Sequence[]>)[]} decoders each works on its own
 * @param {{progress?: (progress: Progress) => void, signal?: AbortSignal}} [options]
 * @returns {Promise<Transcription>}
 */
export async function transcribe(audio, manifest, decoders, { progress, signal } = {}) {
  checkAudio(audio);
  const total = countSegments(audio.length, manifest.segments);
  /** @type {Sequence[]} */
  const sequences = new Array(total);
  const assembler = new NoteAssembler(manifest);
  /** @type {Note[]} */
  const notes = [];
  /** @type {SegmentReport[]} */
  const reports = [];
  let next = 0;

  const assemble = () => {
    for (let sequence = sequences[reports.length]; sequence; sequence = sequences[reports.length]) {
      const { start, nextStart } = segmentAt(audio, reports.length, manifest.segments);
      const chances = Float32Array.from(sequence.logProbs, (value) => Math.exp(value));
      const added = assembler.add(sequence.tokens, chances, start, nextStart);
      notes.push(...added.notes);
      reports.push(added.report);
      progress?.({ done: reports.length, total, notes: added.notes });
    }
  };
  await Promise.all(
    decoders.map(async (decode) => {
      while (next < total) {
        signal?.throwIfAborted();
        const from = next;
        const rows = from < decoders.length ? 1 : ROWS; // the first notes come soon
        next = Math.min(next + rows, total);
        const segments = Array.from({ length: next - from }, (_, i) =>
          segmentAt(audio, from + i, manifest.segments),
        );
        for (const [i, sequence] of (await decode(segments)).entries()) {
          sequences[from + i] = sequence;
        }
        assemble();
      }
    }),
  );
  notes.push(...assembler.finish());
  return {
    notes: byOnset(notes),
    segments: reports,
    sequences,
    duration: audio.length / manifest.segments.sample_rate,
  };
}

/**
 * Notes of the sequences of consecutive segments.
 * @param {{tokens: ArrayLike<number>, logProbs: ArrayLike<number> | null}[]} sequences
 * @param {import('./manifest.js').Manifest} manifest
 * @param {(index: number) => {start: number, nextStart: number | null}} span
 */
export function notesOf(sequences, manifest, span) {
  const assembler = new NoteAssembler(manifest);
  const notes = sequences.flatMap(({ tokens, logProbs }, index) => {
    const { start, nextStart } = span(index);
    const chances = logProbs && Float32Array.from(logProbs, (value) => Math.exp(value));
    return assembler.add(tokens, chances, start, nextStart).notes;
  });
  return byOnset([...notes, ...assembler.finish()]);
}

/**
 * Refuses audio from which nothing can come.
 * @param {Float32Array} audio
 */
export function checkAudio(audio) {
  if (audio.length === 0) {
    throw new Mt3Error('The recording has no samples. Choose a file that is longer than nothing.');
  }
  const bad = audio.findIndex((sample) => !Number.isFinite(sample));
  if (bad >= 0) {
    throw new Mt3Error(
      `Sample ${bad} is NaN or infinite. Export the recording again from the program it is of.`,
    );
  }
}
