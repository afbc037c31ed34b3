/**
 * Two results of one recording: which of their notes are the same.
 */

/** @typedef {import('../src/assembler.js').Note} Note */

/** Onsets of equal notes differ by no more [s]. */
export const TOLERANCE = 0.05;

/**
 * Pairs notes of equal pitch and instrument by onset, in order.
 * @param {Note[]} first
 * @param {Note[]} second
 * @returns {{same: number, onlyFirst: Set<Note>, onlySecond: Set<Note>, f1: number}}
 */
export function compareNotes(first, second) {
  const onlyFirst = new Set(first);
  const onlySecond = new Set(second);
  const others = grouped(second);
  for (const [key, notes] of grouped(first)) {
    const candidates = others.get(key) ?? [];
    let at = 0;
    for (const note of notes) {
      while ((candidates[at]?.onset ?? Infinity) < note.onset - TOLERANCE) at++;
      const candidate = candidates[at];
      if (!candidate || candidate.onset > note.onset + TOLERANCE) continue;
      onlyFirst.delete(note);
      onlySecond.delete(candidate);
      at++;
    }
  }
  const same = first.length - onlyFirst.size;
  const all = first.length + second.length;
  return { same, onlyFirst, onlySecond, f1: all ? (2 * same) / all : 1 };
}

/**
 * Notes by pitch and instrument, by onset.
 * @param {Note[]} notes
 */
function grouped(notes) {
  /** @type {Map<string, Note[]>} */
  const found = new Map();
  for (const note of [...notes].sort((a, b) => a.onset - b.onset)) {
    const key = `${note.pitch} ${note.isDrum ? 'drums' : note.program}`;
    const group = found.get(key);
    if (group) group.push(note);
    else found.set(key, [note]);
  }
  return found;
}
