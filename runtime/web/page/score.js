/**
 * The notes of a recording, and every edit of them with its way back.
 */
import { byOnset } from '../src/index.js';

/** @typedef {import('../src/assembler.js').Note} Note */

/** Edits that can be taken back. */
const MOST = 500;
/** Shortest note that an edit leaves [s]. */
const SHORTEST = 0.01;

export class Score {
  /** @type {Note[]} */
  notes = [];
  /** Whether notes still come: edits would be lost then. */
  locked = false;
  /** @type {{label: string, notes: Note[]}[]} */
  #past = [];
  /** @type {{label: string, notes: Note[]}[]} */
  #future = [];

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /**
   * Begins anew; edits are forgotten.
   * @param {Note[]} notes
   */
  reset(notes = []) {
    this.notes = notes;
    this.#past = [];
    this.#future = [];
  }

  /**
   * Replaces all notes by edited ones; says whether it did.
   * @param {string} label what was done, for undo
   * @param {Note[]} notes in any order
   */
  edit(label, notes) {
    if (this.locked) return false;
    this.#past = [...this.#past.slice(1 - MOST), { label, notes: this.notes }];
    this.#future = [];
    this.notes = byOnset(notes);
    return true;
  }

  /**
   * Puts one note in place of another; null in place of it removes it.
   * @param {string} label
   * @param {Note} note
   * @param {Note | null} other
   */
  exchange(label, note, other) {
    const rest = this.notes.filter((one) => one !== note);
    return this.edit(label, other ? [...rest, other] : rest);
  }

  /** Takes the last edit back; returns what it was. */
  undo() {
    return this.#step(this.#past, this.#future);
  }

  /** Does again what was taken back last. */
  redo() {
    return this.#step(this.#future, this.#past);
  }

  /**
   * @param {{label: string, notes: Note[]}[]} from
   * @param {{label: string, notes: Note[]}[]} to
   */
  #step(from, to) {
    const found = this.locked ? undefined : from.pop();
    if (!found) return null;
    to.push({ label: found.label, notes: this.notes });
    this.notes = found.notes;
    return found.label;
  }
}

/**
 * A note elsewhere, within what MIDI and the recording have.
 * @param {Note} note
 * @param {{onset?: number, length?: number, pitch?: number}} place
 * @param {number} seconds length of the recording
 * @returns {Note}
 */
export function moved(note, place, seconds) {
  const within = (/** @type {number} */ value, /** @type {number} */ most) =>
    Math.max(0, Math.min(value, most));
  const onset = within(place.onset ?? note.onset, Math.max(0, seconds - SHORTEST));
  const length = Math.max(SHORTEST, place.length ?? note.offset - note.onset);
  const pitch = within(Math.round(place.pitch ?? note.pitch), 127);
  return { ...note, onset, offset: onset + length, pitch };
}

/**
 * A note of another instrument; drums have no program.
 * @param {Note} note
 * @param {string} key "drums", or the number of a program
 * @returns {Note}
 */
export function reassigned(note, key) {
  return { ...note, program: key === 'drums' ? 0 : Number(key), isDrum: key === 'drums' };
}
