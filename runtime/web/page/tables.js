/**
 * Tables of instruments and of notes: what the canvas shows, for keyboards and screen readers.
 */
import { instrumentName } from '../src/index.js';
import { colour } from './roll.js';

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {{key: string, program: number, isDrum: boolean, notes: Note[]}} Instrument
 */

const NAMES = ['C', 'C♯', 'D', 'D♯', 'E', 'F', 'F♯', 'G', 'G♯', 'A', 'A♯', 'B'];

/** @param {number} pitch */
export const pitchName = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;

/** @param {Note} note */
export const keyOf = ({ program, isDrum }) => (isDrum ? 'drums' : String(program));

/**
 * Instruments of notes, in the order of their programs, drums last.
 * @param {Note[]} notes
 * @returns {Instrument[]}
 */
export function instrumentsOf(notes) {
  /** @type {Map<string, Instrument>} */
  const found = new Map();
  for (const note of notes) {
    const { program, isDrum } = note;
    const key = keyOf(note);
    const entry = found.get(key) ?? { key, program, isDrum, notes: [] };
    entry.notes.push(note);
    found.set(key, entry);
  }
  return [...found.values()].sort(
    (a, b) => Number(a.isDrum) - Number(b.isDrum) || a.program - b.program,
  );
}

/**
 * @param {string} label
 * @param {boolean} pressed
 * @param {string} text
 * @param {() => void} act
 */
function toggle(label, pressed, text, act) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = text;
  button.setAttribute('aria-pressed', String(pressed));
  button.setAttribute('aria-label', label);
  button.addEventListener('click', act);
  return button;
}

/**
 * @param {HTMLTableRowElement} row
 * @param {(string | Node)[]} cells
 */
function fill(row, cells) {
  for (const content of cells) row.insertCell().append(content);
}

/**
 * @param {HTMLTableSectionElement} body
 * @param {Instrument[]} instruments
 * @param {{muted: Set<string>, solo: Set<string>}} state
 * @param {(which: 'muted' | 'solo', key: string) => void} act
 */
export function fillInstruments(body, instruments, state, act) {
  const focused = body.querySelector(':focus')?.getAttribute('aria-label');
  body.replaceChildren();
  for (const { key, program, isDrum, notes } of instruments) {
    const name = instrumentName(program, isDrum);
    const pitches = notes.map(({ pitch }) => pitch);
    const low = pitches.reduce((a, b) => Math.min(a, b), 127);
    const high = pitches.reduce((a, b) => Math.max(a, b), 0);
    const row = body.insertRow();
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.style.backgroundColor = colour(program, isDrum);
    const title = document.createElement('span');
    title.append(swatch, name);
    const mute = toggle(`Mute ${name}`, state.muted.has(key), 'Mute', () => act('muted', key));
    const solo = toggle(`Solo ${name}`, state.solo.has(key), 'Solo', () => act('solo', key));
    const range = isDrum ? '–' : `${pitchName(low)} to ${pitchName(high)}`;
    fill(row, [title, String(notes.length), range, mute, solo]);
    row.addEventListener('keydown', ({ key: pressed }) => {
      if (pressed === 'm' || pressed === 'M') act('muted', key);
      if (pressed === 's' || pressed === 'S') act('solo', key);
    });
  }
  for (const button of body.querySelectorAll('button')) {
    if (focused && button.getAttribute('aria-label') === focused) button.focus();
  }
}

/**
 * @param {HTMLTableSectionElement} body
 * @param {Note[]} notes
 * @param {(note: Note) => void} remove
 */
export function fillNotes(body, notes, remove) {
  body.replaceChildren();
  for (const note of notes) {
    const row = body.insertRow();
    const name = instrumentName(note.program, note.isDrum);
    const pitch = note.isDrum ? `key ${note.pitch}` : pitchName(note.pitch);
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'Delete';
    button.setAttribute('aria-label', `Delete ${pitch} of ${name} at ${note.onset.toFixed(2)} s`);
    button.addEventListener('click', () => remove(note));
    row.addEventListener('keydown', ({ key }) => {
      if (key === 'Delete') remove(note);
    });
    const length = `${(note.offset - note.onset).toFixed(2)} s`;
    const sure = `${Math.round(note.confidence * 100)} %`;
    fill(row, [`${note.onset.toFixed(2)} s`, length, pitch, name, sure, button]);
  }
}
