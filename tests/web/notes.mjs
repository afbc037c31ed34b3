// Compares the notes and MIDI files of the JavaScript runtime with the reference vectors.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { calibrated, byOnset, NoteAssembler, startOf, toMidi } from '../../runtime/web/src/index.js';

const path = new URL('../../runtime/web/vectors.json', import.meta.url);
const { models, cases } = JSON.parse(readFileSync(path, 'utf8'));
for (const expected of cases) {
  const manifest = models[expected.model];
  const assembler = new NoteAssembler(manifest);
  const count = expected.sequences.length;
  const ended = [];
  const reports = [];
  for (const [index, tokens] of expected.sequences.entries()) {
    const start = startOf(index, manifest.segments);
    const next = index + 1 === count ? null : startOf(index + 1, manifest.segments);
    const { notes, report } = assembler.add(tokens, expected.probabilities[index], start, next);
    ended.push(...notes);
    const { truncated, missingTie, invalidEvents, droppedEvents } = report;
    reports.push([report.tokens, truncated, missingTie, invalidEvents, droppedEvents]);
  }
  const notes = byOnset([...ended, ...assembler.finish()]);
  assert.deepEqual(reports, expected.reports, expected.name);
  assert.deepEqual(
    notes.map((n) => [n.onset, n.offset, n.pitch, n.velocity, n.program, n.isDrum, n.confidence]),
    expected.notes,
    expected.name,
  );
  for (const [i, note] of notes.entries()) {
    if (!expected.calibrated) break;
    assert.ok(Math.abs(calibrated(note, manifest) - expected.calibrated[i]) < 1e-12);
  }
  const midi = toMidi([...notes].reverse());
  const digest = createHash('sha256').update(midi).digest('hex');
  assert.equal(digest, expected.midi_sha256, expected.name);
  if (expected.midi) assert.equal(Buffer.from(midi).toString('base64'), expected.midi);
}
console.log(`${cases.length} cases, ${cases.reduce((n, c) => n + c.notes.length, 0)} notes`);
