/**
 * What a leakage filter changed, note by note, and the way back.
 */

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {{note: Note, became: Note | null, reason: string}} Change
 * @typedef {{onset: number, offset: number, pitch: number, program: number, confidence: number,
 *   became: {pitch: number, program: number, is_drum: boolean} | null, reason: string}} Written
 */

/** Velocity of a note whose own is not known. */
const VELOCITY = 100;

/**
 * Changes of a report (`leakage` in a result's JSON), with the notes they are about.
 * @param {Written[]} written
 * @param {Note[]} notes the result's
 * @param {Note[]} heard all that the model said while it ran, for what a report leaves out
 * @returns {Change[]}
 */
export function changesOf(written, notes, heard) {
  const near = (/** @type {number} */ a, /** @type {number} */ b) => Math.abs(a - b) < 1e-5;
  return written.map(({ onset, offset, pitch, program, confidence, became, reason }) => {
    const told = heard.find(
      (n) => near(n.onset, onset) && n.pitch === pitch && n.program === program && !n.isDrum,
    );
    const probabilities = { onset: null, pitch: null, program: null, offset: null };
    const velocity = told?.velocity ?? VELOCITY;
    const head = { onset, offset, pitch, velocity, program, isDrum: false };
    const found = notes.find(
      (n) =>
        became !== null &&
        near(n.onset, onset) &&
        n.pitch === became.pitch &&
        n.isDrum === became.is_drum &&
        n.program === became.program,
    );
    return { note: { ...head, confidence, probabilities }, became: found ?? null, reason };
  });
}

/**
 * Whether the model's note is back.
 * @param {Change} change
 * @param {Note[]} notes
 */
export const isUndone = ({ note }, notes) => notes.includes(note);

/**
 * Notes with some changes taken back, or made again.
 * @param {Change[]} changes
 * @param {Note[]} notes
 * @param {boolean} back
 * @returns {Note[]}
 */
export function withChanges(changes, notes, back) {
  const away = new Set(changes.map((change) => (back ? change.became : change.note)));
  const rest = new Set(notes.filter((note) => !away.has(note)));
  for (const change of changes) {
    const come = back ? change.note : change.became;
    if (come) rest.add(come);
  }
  return [...rest];
}
