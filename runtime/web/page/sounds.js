/**
 * Plays notes with General MIDI sounds: SpessaSynth in an AudioWorklet, loaded when first wanted.
 */

/** @typedef {import('../src/assembler.js').Note} Note */

const DRUMS = 9;
const MELODIC = Array.from({ length: 16 }, (_, i) => i).filter((i) => i !== DRUMS);
/** Shortest time for which a key is held [s]. */
const SHORTEST = 0.06;

export class Sounds {
  /** @type {any} */
  #synth = null;
  /** @type {Promise<void> | null} */
  #loading = null;
  /** @type {Map<number, number>} channel by program, the one used last at the end */
  #channels = new Map();
  /** Start of the last note that was handed over; nothing takes back what was [s]. */
  #until = 0;
  #timer = 0;

  /**
   * Loads synthesiser and sounds, once.
   * @param {AudioContext} context
   * @returns {Promise<void>} fails where there are no worklets, or no files
   */
  load(context) {
    this.#loading ??= this.#load(context).catch((error) => {
      this.#loading = null;
      throw error;
    });
    return this.#loading;
  }

  /** @param {AudioContext} context */
  async #load(context) {
    const place = (/** @type {string} */ name) => new URL(`../vendor/${name}`, import.meta.url).href;
    const { WorkletSynthesizer } = await import(place('spessasynth.js'));
    await context.audioWorklet.addModule(place('spessasynth_processor.js'));
    const response = await fetch(place('general-midi.sf3'));
    if (!response.ok) throw new Error(`general-midi.sf3: ${response.status}`);
    const synth = new WorkletSynthesizer(context, { eventsEnabled: false });
    await synth.soundBankManager.addSoundBank(await response.arrayBuffer(), 'general-midi');
    await synth.isReady;
    this.#synth = synth;
  }

  /**
   * Sends the sound to a node from now on, once notes from before a pause have begun unheard.
   * @param {AudioNode} node
   */
  connect(node) {
    const wait = this.#until - node.context.currentTime;
    clearTimeout(this.#timer);
    const connect = () => {
      this.#synth.stopAll(true);
      this.#synth.connect(node);
    };
    if (wait > 0) this.#timer = setTimeout(connect, wait * 1000);
    else connect();
  }

  /** Silences all. */
  stop() {
    clearTimeout(this.#timer);
    this.#synth.stopAll(true);
    this.#synth.disconnect();
  }

  /**
   * @param {Note} note
   * @param {number} start time of the context [s]
   */
  play(note, start) {
    const channel = note.isDrum ? DRUMS : this.#channelOf(note.program, start);
    const end = start + Math.max(SHORTEST, note.offset - note.onset);
    this.#until = Math.max(this.#until, start);
    this.#synth.noteOn(channel, note.pitch, note.velocity, { time: start });
    this.#synth.noteOff(channel, note.pitch, { time: end });
  }

  /**
   * The channel of a program; the one that was used least recently changes its program.
   * @param {number} program
   * @param {number} time
   */
  #channelOf(program, time) {
    let channel = this.#channels.get(program);
    if (channel === undefined) {
      const taken = new Set(this.#channels.values());
      const [oldest] = this.#channels;
      channel = MELODIC.find((number) => !taken.has(number)) ?? (oldest ? oldest[1] : 0);
      if (taken.has(channel) && oldest) this.#channels.delete(oldest[0]);
      this.#synth.programChange(channel, program, { time });
    }
    this.#channels.delete(program);
    this.#channels.set(program, channel);
    return channel;
  }
}
