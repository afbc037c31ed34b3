/**
 * MT3 music transcription in JavaScript: samples to notes and MIDI.
 */
export { byOnset, calibrated, NoteAssembler } from './assembler.js';
export { CheckedDecoder } from './checked.js';
export { SegmentDecoder } from './decoder.js';
export { Mt3Error } from './errors.js';
export { FeatureExtractor } from './features.js';
export { FAMILIES, instrumentName, PROGRAM_NAMES } from './instruments.js';
export { completeGraph, parseManifest } from './manifest.js';
export { toMidi } from './midi.js';
export { MAX_SECONDS, rateOf, readRecording } from './reading.js';
export { resample } from './resample.js';
export { countSegments, segmentAt, startOf } from './segments.js';
export { checkAudio, notesOf, ROWS, transcribe } from './transcribe.js';
export { mixDown, readWav } from './wav.js';
