/**
 * The pointer on the piano roll: a press on a note selects it, a drag moves it, a press elsewhere
 * moves the playhead.
 */

/** A press that moves less is none of a drag [pixels]. */
const STILL = 4;

/**
 * @typedef {import('../src/assembler.js').Note} Note
 *
 * @param {HTMLElement} view what the canvas lies in
 * @param {import('./roll.js').Roll} roll
 * @param {object} acts
 * @param {(time: number) => void} acts.seek
 * @param {(note: Note) => void} acts.select
 * @param {(seconds: number, semitones: number) => void} acts.shift moves the selected note
 */
export function watchPointer(view, roll, { seek, select, shift }) {
  /** @type {{x: number, y: number} | null} */
  let from = null;
  view.addEventListener('pointerdown', ({ offsetX, offsetY, pointerId }) => {
    const note = roll.noteAt(offsetX, offsetY);
    if (!note) return seek(roll.timeAt(offsetX));
    select(note);
    from = { x: offsetX, y: offsetY };
    view.setPointerCapture(pointerId);
  });
  view.addEventListener('pointerup', ({ offsetX, offsetY }) => {
    if (!from) return;
    const x = offsetX - from.x;
    const y = offsetY - from.y;
    from = null;
    if (Math.hypot(x, y) < STILL) return;
    shift(x / roll.zoom, -Math.round(y / roll.shape.row));
  });
  view.addEventListener('pointercancel', () => (from = null));
}
