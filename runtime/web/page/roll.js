/**
 * Draws the waveform and the piano roll on a canvas: what is seen is a window around the playhead.
 */

/** @typedef {import('../src/assembler.js').Note} Note */

/** Height of the waveform as a part of the canvas. */
const WAVE = 0.18;
/** Columns of the stored waveform per second. */
const COLUMNS = 100;

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

export class Roll {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.zoom = 100;
    /** @type {Float32Array} */
    this.peaks = new Float32Array();
    this.seconds = 0;
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
   * @param {Note[]} notes that are heard
   * @param {number} time of the playhead
   */
  draw(notes, time) {
    const { canvas } = this;
    const scale = globalThis.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext('2d');
    if (!context) return;
    context.scale(scale, scale);
    const left = this.left(time);
    const style = getComputedStyle(canvas);
    this.#drawWave(context, left, width, height * WAVE, style.color);
    this.#drawNotes(context, notes, left, width, height);
    context.fillStyle = style.color;
    context.fillRect((time - left) * this.zoom, 0, 2, height);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} left
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   */
  #drawWave(context, left, width, height, ink) {
    context.fillStyle = ink;
    context.globalAlpha = 0.55;
    for (let x = 0; x < width; x++) {
      const from = Math.floor((left + x / this.zoom) * COLUMNS);
      const peak = Math.min(1, this.peaks[from] ?? 0);
      context.fillRect(x, (height * (1 - peak)) / 2, 1, Math.max(1, height * peak));
    }
    context.globalAlpha = 1;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Note[]} notes
   * @param {number} left
   * @param {number} width
   * @param {number} height
   */
  #drawNotes(context, notes, left, width, height) {
    const pitches = notes.map(({ pitch }) => pitch);
    const low = pitches.reduce((a, b) => Math.min(a, b), 127) - 1;
    const high = pitches.reduce((a, b) => Math.max(a, b), 0) + 1;
    const top = height * WAVE + 4;
    const row = (height - top) / Math.max(12, high - low + 1);
    const right = left + width / this.zoom;
    for (const note of notes) {
      if (note.offset < left || note.onset > right) continue;
      const alpha = 0.25 + 0.75 * note.confidence;
      context.fillStyle = colour(note.program, note.isDrum, alpha);
      const x = (note.onset - left) * this.zoom;
      const long = Math.max(3, (note.offset - note.onset) * this.zoom - 1);
      context.fillRect(x, height - (note.pitch - low + 1) * row, long, Math.max(2, row - 1));
    }
  }
}
