/**
 * The second result of a recording: kept from before, or read from a file, and shown below the first
 * with the same playhead.
 */
import { compareNotes } from './comparison.js';
import { button, element, input } from './elements.js';
import { fromJson } from './files.js';
import { Roll } from './roll.js';

/** @typedef {import('../src/assembler.js').Note} Note */

const ui = {
  keep: button('keep'),
  hear: button('hear-other'),
  stop: button('stop-comparing'),
  file: input('other-file'),
  text: element('compared', HTMLParagraphElement),
  figure: element('view-other', HTMLDivElement),
  title: element('other-title', HTMLParagraphElement),
};

export class Compared {
  /** @type {{title: string, notes: Note[]} | null} */
  other = null;
  /** Whether the second one is played. */
  heard = false;
  roll = new Roll(element('roll-other', HTMLCanvasElement), 0);
  /** @type {ReturnType<typeof compareNotes> | null} */
  #found = null;
  /** @type {Note[] | null} what was compared last */
  #first = null;

  /**
   * @param {{current: () => {title: string, notes: Note[]}, changed: (text: string) => void,
   *   complain: (error: unknown) => void}} page
   */
  constructor({ current, changed, complain }) {
    this.changed = changed;
    ui.keep.addEventListener('click', () => {
      this.set(current());
      changed('Kept. Change the settings above and transcribe again, or edit the notes.');
    });
    ui.stop.addEventListener('click', () => {
      this.set(null);
      changed('One result again.');
    });
    ui.hear.addEventListener('click', () => this.swap());
    ui.file.addEventListener('change', async () => {
      const [file] = ui.file.files ?? [];
      if (!file) return;
      try {
        const { notes, model } = fromJson(await file.text());
        this.set({ title: [file.name, model].filter(Boolean).join(', '), notes });
        changed(`${notes.length} notes of ${file.name} to compare.`);
      } catch (error) {
        complain(error);
      }
      ui.file.value = '';
    });
  }

  /** @param {{title: string, notes: Note[]} | null} other */
  set(other) {
    this.other = other;
    this.#found = this.#first = null;
    if (!other) this.heard = false;
  }

  /** Plays the other one of the two. */
  swap() {
    if (!this.other) return;
    this.heard = !this.heard;
    this.changed(this.heard ? `Hearing the second: ${this.other.title}.` : 'Hearing the first.');
  }

  /**
   * Notes of the first that the second lacks.
   * @param {Note[]} notes of the first
   */
  unmatched(notes) {
    if (!this.other) return null;
    if (this.#first !== notes) {
      this.#found = compareNotes(notes, this.other.notes);
      this.#first = notes;
    }
    return this.#found?.onlyFirst ?? null;
  }

  /**
   * Shows both in words, and the second one's controls.
   * @param {Note[]} notes of the first
   * @param {string} title
   */
  show(notes, title) {
    const { other } = this;
    ui.figure.hidden = ui.hear.hidden = ui.stop.hidden = ui.text.hidden = other === null;
    ui.hear.setAttribute('aria-pressed', String(this.heard));
    if (!other) return;
    const only = this.unmatched(notes)?.size ?? 0;
    const { same, onlySecond, f1 } = /** @type {ReturnType<typeof compareNotes>} */ (this.#found);
    ui.title.textContent = `Second: ${other.title}`;
    ui.text.textContent =
      `First: ${title}, ${notes.length} notes. Second: ${other.title}, ${other.notes.length} notes. ` +
      `${same} are the same within 50 ms (F1 ${f1.toFixed(3)}), ${only} only in the first, ` +
      `${onlySecond.size} only in the second; those are hollow.`;
  }

  /**
   * @param {Note[]} notes of the second that are not muted
   * @param {Note[]} range those of both
   * @param {number} time
   * @param {number} zoom
   */
  draw(notes, range, time, zoom) {
    this.roll.zoom = zoom;
    this.roll.draw(notes, time, { unmatched: this.#found?.onlySecond ?? null, range });
  }
}
