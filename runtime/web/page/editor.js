/**
 * Edits the selected note: its place, its pitch and its instrument, or deletes it.
 */
import { instrumentName } from '../src/index.js';
import { button, element, input, instrumentOptions, select } from './elements.js';
import { moved, reassigned } from './score.js';
import { keyOf, pitchName } from './tables.js';

/** @typedef {import('../src/assembler.js').Note} Note */

const ui = {
  panel: element('editor', HTMLFieldSetElement),
  onset: input('note-onset'),
  length: input('note-length'),
  pitch: input('note-pitch'),
  name: element('note-name', HTMLOutputElement),
  instrument: select('note-instrument'),
  remove: button('note-delete'),
  close: button('note-close'),
};

export class NoteEditor {
  /** @type {Note | null} */
  note = null;

  /**
   * @param {import('./score.js').Score} score
   * @param {{seconds: () => number, changed: (text: string) => void}} page
   */
  constructor(score, { seconds, changed }) {
    this.score = score;
    this.changed = changed;
    this.seconds = seconds;
    ui.instrument.append(instrumentOptions());
    ui.onset.addEventListener('change', () => this.#move({ onset: ui.onset.valueAsNumber }));
    ui.length.addEventListener('change', () => this.#move({ length: ui.length.valueAsNumber }));
    ui.pitch.addEventListener('change', () => this.#move({ pitch: ui.pitch.valueAsNumber }));
    ui.instrument.addEventListener('change', () => {
      if (!this.note) return;
      const name = ui.instrument.selectedOptions[0]?.text ?? '';
      const other = reassigned(this.note, ui.instrument.value);
      this.exchange(`gave one note to ${name}`, other);
    });
    ui.remove.addEventListener('click', () => this.remove());
    ui.close.addEventListener('click', () => this.select(null));
  }

  /**
   * Shows a note in the panel; null hides it.
   * @param {Note | null} note
   */
  select(note) {
    this.note = note;
    this.show();
    this.changed('');
  }

  /** Writes the note's values into the panel, or hides it if the note is gone. */
  show() {
    if (this.note && !this.score.notes.includes(this.note)) this.note = null;
    ui.panel.hidden = this.note === null;
    ui.panel.disabled = this.score.locked;
    if (!this.note) return;
    const { onset, offset, pitch, isDrum } = this.note;
    ui.onset.value = onset.toFixed(2);
    ui.length.value = (offset - onset).toFixed(2);
    ui.pitch.value = String(pitch);
    ui.name.value = isDrum ? `key ${pitch}` : pitchName(pitch);
    ui.instrument.value = keyOf(this.note);
  }

  /**
   * Moves the selected note by so much.
   * @param {number} seconds
   * @param {number} semitones
   */
  shift(seconds, semitones) {
    if (!this.note) return;
    this.#move({ onset: this.note.onset + seconds, pitch: this.note.pitch + semitones });
  }

  /** Deletes the selected note. */
  remove() {
    if (this.note) this.exchange('deleted one note', null);
  }

  /**
   * @param {{onset?: number, length?: number, pitch?: number}} place
   */
  #move(place) {
    if (!this.note || Object.values(place).some((value) => !Number.isFinite(value))) {
      return this.show();
    }
    const other = moved(this.note, place, this.seconds());
    const { program, isDrum, pitch } = other;
    const name = isDrum ? `key ${pitch}` : pitchName(pitch);
    const what = `${instrumentName(program, isDrum)} ${name} at ${other.onset.toFixed(2)} s`;
    this.exchange(`moved a note: ${what}`, other);
  }

  /**
   * Puts another note in the place of the selected one.
   * @param {string} label
   * @param {Note | null} other
   */
  exchange(label, other) {
    if (!this.note || !this.score.exchange(label, this.note, other)) return;
    this.note = other;
    this.show();
    this.changed(label);
  }
}
