/**
 * Draws the waveform and the piano roll on a canvas: what is seen is a window around the playhead.
 */

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {{spotlight?: string | null, selected?: Note | null, unmatched?: Set<Note> | null,
 *   keyOf?: (note: Note) => string, range?: Note[]}} Marks range: notes whose pitches are in view
 */

/** Height of the waveform as a part of the canvas. */
const WAVE = 0.18;
/** Columns of the stored waveform per second. */
const COLUMNS = 100;
/** Lines of time are no closer than this [pixels]. */
const APART = 70;
/** Shortest time for which a note is marked [s]. */
const SEEN = 0.1;
/** Pitch classes of black keys. */
const BLACK = new Set([1, 3, 6, 8, 10]);

/**
 * Hue of an instrument, by family; drums have none.
 * @param {number} program
 * @param {boolean} isDrum
 * @param {number} [alpha]
 */
export function colour(program, isDrum, alpha = 1) {
  if (isDrum) return `hsl(0 0% 52% / ${alpha})`;
  const family = Math.floor(program / 8);
  return `hsl(${(family * 67 + (program % 8) * 6) % 360} 70% 48% / ${alpha})`;
}

/**
 * Whether a note sounds at a time; drums are seen for a moment longer than they last.
 * @param {Note} note
 * @param {number} time
 */
export const isSounding = ({ onset, offset }, time) =>
  onset <= time && time < Math.max(offset, onset + SEEN);

export class Roll {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} wave height of the waveform as a part of the canvas
   */
  constructor(canvas, wave = WAVE) {
    this.canvas = canvas;
    this.wave = wave;
    this.zoom = 100;
    /** @type {Float32Array} */
    this.peaks = new Float32Array();
    this.seconds = 0;
    /** @type {Note[]} what was drawn last */
    this.drawn = [];
    this.shape = { left: 0, top: 0, low: 60, row: 10, height: 0 };
  }

  /**
   * @param {Float32Array} samples
   * @param {number} rate
   */
  setWave(samples, rate) {
    const step = rate / COLUMNS;
    this.seconds = samples.length / rate;
    this.peaks = new Float32Array(Math.ceil(samples.length / step));
    for (const [i, sample] of samples.entries()) {
      const at = Math.floor(i / step);
      this.peaks[at] = Math.max(this.peaks[at] ?? 0, Math.abs(sample));
    }
  }

  /** The time at the left edge, for a playhead that stays in view. */
  left(/** @type {number} */ time) {
    const shown = this.canvas.clientWidth / this.zoom;
    return Math.max(0, Math.min(time - shown / 3, this.seconds - shown));
  }

  /**
   * The time at a place of the canvas.
   * @param {number} x pixels
   */
  timeAt(x) {
    return this.shape.left + x / this.zoom;
  }

  /**
   * The note at a place, the one that was drawn last if there are several.
   * @param {number} x pixels
   * @param {number} y
   * @returns {Note | null}
   */
  noteAt(x, y) {
    const time = this.timeAt(x);
    const reach = 3 / this.zoom;
    const pitch = Math.floor((this.shape.height - y) / this.shape.row) + this.shape.low;
    const hit = (/** @type {Note} */ note) =>
      note.pitch === pitch && note.onset - reach <= time && time <= note.offset + reach;
    return this.drawn.findLast(hit) ?? null;
  }

  /**
   * @param {Note[]} notes that are heard
   * @param {number} time of the playhead
   * @param {Marks} marks
   */
  draw(notes, time, marks = {}) {
    const { canvas } = this;
    const scale = globalThis.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext('2d');
    if (!context) return;
    context.scale(scale, scale);
    const ink = getComputedStyle(canvas).color;
    this.#measure(marks.range ?? notes, time, height);
    this.drawn = notes;
    if (this.wave) this.#drawWave(context, width, height * this.wave, ink);
    this.#drawGrid(context, width, height, ink);
    this.#drawNotes(context, notes, width, { ink, time, marks });
    context.fillStyle = ink;
    context.fillRect((time - this.shape.left) * this.zoom, 0, 2, height);
  }

  /**
   * Where pitches and times are on the canvas.
   * @param {Note[]} notes
   * @param {number} time
   * @param {number} height
   */
  #measure(notes, time, height) {
    const pitches = notes.map(({ pitch }) => pitch);
    const low = pitches.reduce((a, b) => Math.min(a, b), notes.length ? 127 : 54) - 1;
    const high = pitches.reduce((a, b) => Math.max(a, b), notes.length ? 0 : 66) + 1;
    const top = height * this.wave + (this.wave ? 4 : 16);
    const row = (height - top) / Math.max(12, high - low + 1);
    this.shape = { left: this.left(time), top, low, row, height };
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   */
  #drawWave(context, width, height, ink) {
    context.fillStyle = ink;
    context.globalAlpha = 0.55;
    for (let x = 0; x < width; x++) {
      const from = Math.floor(this.timeAt(x) * COLUMNS);
      const to = Math.max(from + 1, Math.floor(this.timeAt(x + 1) * COLUMNS));
      let peak = 0;
      for (let i = from; i < to; i++) peak = Math.max(peak, this.peaks[i] ?? 0);
      peak = Math.min(1, peak);
      context.fillRect(x, (height * (1 - peak)) / 2, 1, Math.max(1, height * peak));
    }
    context.globalAlpha = 1;
  }

  /**
   * Lanes of black keys, names of the Cs, and lines of time.
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   */
  #drawGrid(context, width, height, ink) {
    const { left, top, low, row } = this.shape;
    context.fillStyle = ink;
    context.font = '11px system-ui, sans-serif';
    const count = Math.ceil((height - top) / row);
    for (let pitch = low; pitch < low + count; pitch++) {
      const y = height - (pitch - low + 1) * row;
      context.globalAlpha = BLACK.has(((pitch % 12) + 12) % 12) ? 0.06 : 0;
      context.fillRect(0, y, width, row);
    }
    const step = [0.5, 1, 2, 5, 10, 20, 30, 60].find((s) => s * this.zoom >= APART) ?? 120;
    for (let t = Math.ceil(left / step) * step; t < left + width / this.zoom; t += step) {
      const x = (t - left) * this.zoom;
      context.globalAlpha = 0.18;
      context.fillRect(x, 0, 1, height);
      context.globalAlpha = 0.8;
      context.fillText(`${Number(t.toFixed(1))} s`, x + 3, 11);
    }
    for (let pitch = low; pitch < low + count; pitch++) {
      if (pitch % 12) continue;
      const y = height - (pitch - low + 1) * row;
      context.globalAlpha = 0.25;
      context.fillRect(0, y + row - 1, width, 1);
      context.globalAlpha = 0.8;
      context.fillText(`C${pitch / 12 - 1}`, 3, y + row - 3);
    }
    context.globalAlpha = 1;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Note[]} notes
   * @param {number} width
   * @param {{ink: string, time: number, marks: Marks}} how
   */
  #drawNotes(context, notes, width, { ink, time, marks }) {
    const { left, low, row, height } = this.shape;
    const { spotlight, selected, unmatched, keyOf } = marks;
    const right = left + width / this.zoom;
    for (const note of notes) {
      if (note.offset < left || note.onset > right) continue;
      const dim = spotlight && keyOf && keyOf(note) !== spotlight ? 0.25 : 1;
      const hollow = unmatched?.has(note) ?? false;
      const sounds = isSounding(note, time);
      const alpha = (0.25 + 0.75 * note.confidence) * dim * (hollow ? 0.35 : 1);
      context.fillStyle = colour(note.program, note.isDrum, sounds ? 1 : alpha);
      const x = (note.onset - left) * this.zoom;
      const y = height - (note.pitch - low + 1) * row;
      const long = Math.max(3, (note.offset - note.onset) * this.zoom - 1);
      const high = Math.max(2, row - 1);
      context.fillRect(x, y, long, high);
      if (!sounds && !hollow && note !== selected) continue;
      const isMarked = sounds || note === selected;
      context.strokeStyle = isMarked ? ink : colour(note.program, note.isDrum, dim);
      context.lineWidth = note === selected ? 3 : 1.5;
      context.strokeRect(x, y, long, high);
    }
  }
}
