/**
 * Plays the original and the notes together: one clock, two gains.  Notes are plain tones, scheduled
 * a little ahead, so that muting is heard at once.
 */

/** @typedef {import('../src/assembler.js').Note} Note */

/** Notes are handed over this far ahead, and this often [s]. */
const AHEAD = 0.4;
const EVERY = 0.1;

export class Player {
  constructor() {
    /** @type {AudioContext | null} */
    this.context = null;
    /** @type {Float32Array} */
    this.samples = new Float32Array();
    this.rate = 16_000;
    /** @type {() => Note[]} */
    this.audible = () => [];
    this.blend = 0.5;
    this.position = 0;
    this.started = 0;
    this.scheduled = 0;
    this.timer = 0;
    /** @type {AudioScheduledSourceNode[]} */
    this.sources = [];
  }

  get playing() {
    return this.timer !== 0;
  }

  get seconds() {
    return this.samples.length / this.rate;
  }

  /** Where playback is, in seconds. */
  get time() {
    if (!this.playing || !this.context) return this.position;
    return Math.min(this.seconds, this.position + this.context.currentTime - this.started);
  }

  /**
   * @param {Float32Array} samples
   * @param {number} rate
   */
  setSound(samples, rate) {
    this.pause();
    this.samples = samples;
    this.rate = rate;
    this.position = 0;
  }

  /** @param {number} value 0: the original alone, 1: the notes alone */
  setBlend(value) {
    this.blend = value;
    if (this.original) this.original.gain.value = Math.cos((value * Math.PI) / 2);
    if (this.notes) this.notes.gain.value = Math.sin((value * Math.PI) / 2);
  }

  async play() {
    if (this.playing || !this.samples.length) return;
    const context = (this.context ??= new AudioContext());
    await context.resume();
    this.original = new GainNode(context);
    this.notes = new GainNode(context);
    this.original.connect(context.destination);
    this.notes.connect(context.destination);
    this.setBlend(this.blend);
    if (this.position >= this.seconds) this.position = 0;
    const buffer = context.createBuffer(1, this.samples.length, this.rate);
    buffer.getChannelData(0).set(this.samples);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(this.original);
    this.started = context.currentTime + 0.05;
    source.start(this.started, this.position);
    this.sources = [source];
    this.scheduled = this.position;
    this.timer = setInterval(() => this.#schedule(), EVERY * 1000);
    this.#schedule();
  }

  pause() {
    if (!this.playing) return;
    this.position = this.time;
    clearInterval(this.timer);
    this.timer = 0;
    for (const source of this.sources) source.stop();
    this.sources = [];
  }

  /** @param {number} time seconds */
  async seek(time) {
    const going = this.playing;
    this.pause();
    this.position = Math.max(0, Math.min(time, this.seconds));
    if (going) await this.play();
  }

  #schedule() {
    const { context } = this;
    if (!context) return;
    if (this.time >= this.seconds) {
      this.pause();
      return;
    }
    const until = this.time + AHEAD;
    for (const note of this.audible()) {
      if (note.onset >= this.scheduled && note.onset < until) this.#tone(context, note);
    }
    this.scheduled = until;
  }

  /**
   * @param {AudioContext} context
   * @param {Note} note
   */
  #tone(context, note) {
    const start = Math.max(context.currentTime, this.started + note.onset - this.position);
    const end = start + Math.max(0.06, note.offset - note.onset);
    const gain = new GainNode(context, { gain: 0 });
    const frequency = note.isDrum ? 90 + note.pitch * 4 : 440 * 2 ** ((note.pitch - 69) / 12);
    const type = note.isDrum ? 'square' : 'triangle';
    const tone = new OscillatorNode(context, { type, frequency });
    const level = 0.12 * (note.velocity / 127) * (note.isDrum ? 0.5 : 1);
    gain.gain.setValueAtTime(0, start);
    gain.gain.linearRampToValueAtTime(level, start + 0.008);
    gain.gain.setTargetAtTime(0, note.isDrum ? start + 0.02 : end, 0.04);
    tone.connect(gain).connect(/** @type {GainNode} */ (this.notes));
    tone.start(start);
    tone.stop(end + 0.3);
    this.sources.push(tone);
    tone.addEventListener('ended', () => {
      this.sources = this.sources.filter((other) => other !== tone);
    });
  }
}
