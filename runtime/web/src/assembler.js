/**
 * Notes from the tokens of consecutive segments, by the rules of Magenta's MT3: what
 * `mt3_runtime.notes.magenta_assembler` states, in its arithmetic.
 */
import { Mt3Error } from './errors.js';
import { eventTable } from './vocabulary.js';

/**
 * @typedef {object} Probabilities what the network gave the tokens of a note; null where none is
 * @property {number | null} onset
 * @property {number | null} pitch
 * @property {number | null} program
 * @property {number | null} offset
 *
 * @typedef {object} Note
 * @property {number} onset seconds
 * @property {number} offset seconds
 * @property {number} pitch MIDI pitch, or percussion key of a drum
 * @property {number} velocity 1..127
 * @property {number} program General MIDI program; 0 for drums
 * @property {boolean} isDrum
 * @property {number} confidence probability of the token that started it
 * @property {Probabilities} probabilities
 *
 * @typedef {object} SegmentReport
 * @property {number} index
 * @property {number} tokens those before the end-of-sequence
 * @property {boolean} truncated the token limit was reached
 * @property {boolean} missingTie
 * @property {number} invalidEvents
 * @property {number} droppedEvents
 *
 * @typedef {{onset: number, velocity: number, program: number, pitch: number,
 *   probabilities: Probabilities}} Open
 */

/**
 * Chance of two tokens together; one that is null does not count.
 * @param {number | null} first
 * @param {number | null} second
 */
const both = (first, second) =>
  first === null || second === null ? (first ?? second) : first * second;

export class NoteAssembler {
  /** @param {import('./manifest.js').Manifest} manifest */
  constructor(manifest) {
    this.rules = manifest.notes;
    this.steps = manifest.vocabulary.steps_per_second;
    this.eos = manifest.vocabulary.eos;
    this.events = eventTable(manifest.vocabulary);
    this.generalMidi = new Map(this.rules.general_midi);
    this.index = 0;
    this.clock = 0;
    this.program = this.rules.initial_program;
    this.velocity = this.rules.initial_velocity;
    /** @type {Map<string, Open>} by pitch and program, in the order of their onsets */
    this.open = new Map();
    /** @type {Set<string>} */
    this.tied = new Set();
    this.inTies = false;
    /** @type {Note[]} */
    this.closed = [];
    /** @type {number | null} */
    this.shiftChance = null;
    /** @type {number | null} */
    this.programChance = null;
  }

  /**
   * Takes the next segment.
   * @param {ArrayLike<number>} tokens without the start token
   * @param {ArrayLike<number> | null} probabilities of each token
   * @param {number} start seconds
   * @param {number | null} nextStart
   * @returns {{notes: Note[], report: SegmentReport}} the notes that ended here
   */
  add(tokens, probabilities, start, nextStart) {
    if (probabilities && probabilities.length !== tokens.length) {
      throw new Mt3Error(`${tokens.length} tokens came with ${probabilities.length} probabilities.`);
    }
    const ids = Array.from(tokens);
    const end = ids.indexOf(this.eos);
    const count = end < 0 ? ids.length : end;
    this.inTies = this.rules.ties;
    this.tied.clear();
    this.closed = [];
    this.shiftChance = null;
    const { invalid, dropped } = this.#play(ids.slice(0, count), probabilities, start, nextStart);
    const report = {
      index: this.index++,
      tokens: count,
      truncated: end < 0,
      missingTie: this.inTies,
      invalidEvents: invalid,
      droppedEvents: dropped,
    };
    return { notes: this.closed, report };
  }

  /**
   * Ends the recording: all open notes end together, at the latest time seen.
   * @returns {Note[]}
   */
  finish() {
    this.closed = [];
    for (const { onset } of this.open.values()) {
      this.clock = Math.max(this.clock, onset + this.rules.minimum_duration);
    }
    for (const key of [...this.open.keys()]) this.#close(key, null);
    return this.closed;
  }

  /**
   * @param {number[]} ids
   * @param {ArrayLike<number> | null} chances
   * @param {number} start
   * @param {number | null} nextStart
   */
  #play(ids, chances, start, nextStart) {
    let invalid = 0;
    let steps = 0;
    let time = start;
    /** @type {number | null} */
    let run = null;
    for (const [position, id] of ids.entries()) {
      const event = this.events[id] ?? null;
      const chance = chances ? (chances[position] ?? null) : null;
      if (event === null) {
        invalid++;
      } else if (event.kind === 'shift') {
        run = both(run, chance);
        this.shiftChance = run;
        steps += event.value;
        time = start + steps / this.steps;
        if (nextStart && time > nextStart) return { invalid, dropped: ids.length - position };
      } else {
        steps = 0;
        run = null;
        if (!this.#event(event, time, chance)) invalid++;
      }
    }
    return { invalid, dropped: 0 };
  }

  /**
   * Takes one event other than a shift; says whether it was valid.
   * @param {import('./vocabulary.js').Event} event
   * @param {number} time
   * @param {number | null} chance
   * @returns {boolean}
   */
  #event({ kind, value }, time, chance) {
    if (time < this.clock) return false;
    this.clock = time;
    if (kind === 'pitch') return this.#pitch(value, chance);
    if (kind === 'drum') return this.#drum(value, chance);
    if (kind === 'tie') return this.#tie();
    if (kind === 'velocity') {
      this.velocity = Math.floor((127 * value) / this.rules.velocity_bins);
    } else if (!this.rules.flat_programs) {
      this.program = value;
      this.programChance = chance;
    }
    return true;
  }

  /**
   * @param {number} pitch
   * @param {number | null} chance
   */
  #pitch(pitch, chance) {
    const key = `${pitch} ${this.program}`;
    const isOpen = this.open.has(key);
    if (this.inTies) {
      if (!isOpen || this.tied.has(key)) return false;
      this.tied.add(key);
      return true;
    }
    if (this.velocity === 0) {
      if (isOpen) this.#close(key, both(this.shiftChance, chance));
      return isOpen;
    }
    if (isOpen) this.#close(key, null);
    this.open.set(key, {
      onset: this.clock,
      velocity: this.velocity,
      program: this.program,
      pitch,
      probabilities: {
        onset: this.shiftChance,
        pitch: chance,
        program: this.programChance,
        offset: null,
      },
    });
    return true;
  }

  /**
   * @param {number} pitch
   * @param {number | null} chance
   */
  #drum(pitch, chance) {
    if (this.velocity === 0) return false;
    this.closed.push({
      onset: this.clock,
      offset: this.clock + this.rules.drum_duration,
      pitch,
      velocity: this.velocity,
      program: 0,
      isDrum: true,
      confidence: chance ?? 1,
      probabilities: { onset: this.shiftChance, pitch: chance, program: null, offset: null },
    });
    return true;
  }

  #tie() {
    if (!this.inTies) return false;
    for (const key of [...this.open.keys()]) if (!this.tied.has(key)) this.#close(key, null);
    this.inTies = false;
    return true;
  }

  /**
   * @param {string} key
   * @param {number | null} offsetChance
   */
  #close(key, offsetChance) {
    const found = /** @type {Open} */ (this.open.get(key));
    this.open.delete(key);
    this.closed.push({
      onset: found.onset,
      offset: Math.max(this.clock, found.onset + this.rules.minimum_duration),
      pitch: found.pitch,
      velocity: found.velocity,
      program: this.generalMidi.get(found.program) ?? found.program,
      isDrum: false,
      confidence: found.probabilities.pitch ?? 1,
      probabilities: { ...found.probabilities, offset: offsetChance },
    });
  }
}

/**
 * Notes in the order of a score: onset, then program and pitch, drums last.
 * @param {Note[]} notes
 */
export function byOnset(notes) {
  return [...notes].sort(
    (a, b) =>
      a.onset - b.onset ||
      Number(a.isDrum) - Number(b.isDrum) ||
      a.program - b.program ||
      a.pitch - b.pitch ||
      a.offset - b.offset,
  );
}

/**
 * Estimated probability that a note is right, 0..1; 1 if its probabilities are not known.
 * @param {Note} note
 * @param {import('./manifest.js').Manifest} manifest
 */
export function calibrated(note, manifest) {
  const known = note.probabilities;
  if (manifest.confidence === null || known.pitch === null) return note.confidence;
  const weights = note.isDrum ? manifest.confidence.drums : manifest.confidence.pitched;
  let z = weights.bias;
  for (const name of /** @type {const} */ (['onset', 'pitch', 'program', 'offset'])) {
    const probability = known[name];
    if (probability === null) continue;
    const p = Math.min(Math.max(probability, 1e-3), 1 - 1e-3);
    z += weights[name] * Math.log(p / (1 - p));
  }
  return 0.5 + 0.5 * Math.tanh(0.5 * z);
}
