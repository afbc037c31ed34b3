/**
 * Plays the original and the notes together: one clock, two gains.  Notes are scheduled a little
 * ahead, so that muting is heard at once: with General MIDI sounds, or as plain tones.
 */
import { Sounds } from './sounds.js';

/** @typedef {import('../src/assembler.js').Note} Note */

/** Notes are handed over this far ahead, and this often [s]. */
const AHEAD = 0.25;
const EVERY = 0.1;
/** The same where the page is in the background: there timers run once a second. */
const AHEAD_HIDDEN = 2.5;

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
    this.sounds = new Sounds();
    /** Whether notes are wanted as plain tones. */
    this.plain = false;
    /** Whether the sounds are there. */
    this.ready = false;
    /** @type {(text: string) => void} */
    this.say = () => {};
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

  /**
   * Plays notes as plain tones, or with the sounds of instruments.
   * @param {boolean} plain
   */
  async setPlain(plain) {
    this.plain = plain;
    await this.seek(this.time);
  }

  async play() {
    if (this.playing || !this.samples.length) return;
    const context = (this.context ??= new AudioContext());
    await context.resume();
    if (!this.plain) await this.#load(context);
    if (this.playing) return; // it was asked for twice
    this.original = new GainNode(context);
    this.notes = new GainNode(context);
    this.original.connect(context.destination);
    this.notes.connect(context.destination);
    if (this.ready) this.sounds.connect(this.notes);
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
    this.notes?.disconnect();
    if (this.ready) this.sounds.stop();
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
    const until = this.time + (document.hidden ? AHEAD_HIDDEN : AHEAD);
    for (const note of this.audible()) {
      if (note.onset < this.scheduled || note.onset >= until) continue;
      const start = Math.max(context.currentTime, this.started + note.onset - this.position);
      if (this.ready && !this.plain) this.sounds.play(note, start);
      else this.#tone(context, note, start);
    }
    this.scheduled = until;
  }

  /**
   * Loads the sounds; without them notes are plain tones.
   * @param {AudioContext} context
   */
  async #load(context) {
    if (this.ready) return;
    try {
      this.say('Loading the sounds (1 MB, once).');
      await this.sounds.load(context);
      this.ready = true;
      this.say('Playing with the sounds of instruments.');
    } catch {
      this.plain = true;
      this.say('The sounds of instruments cannot be played here; notes are plain tones.');
    }
  }

  /**
   * @param {AudioContext} context
   * @param {Note} note
   * @param {number} start time of the context [s]
   */
  #tone(context, note, start) {
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
