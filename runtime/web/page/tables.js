/**
 * Tables of instruments and of notes: what the canvas shows, for keyboards and screen readers.
 */
import { instrumentName } from '../src/index.js';
import { instrumentOptions } from './elements.js';
import { isUndone } from './leakage.js';
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
  const button = action(label, text, act);
  button.setAttribute('aria-pressed', String(pressed));
  return button;
}

/**
 * @param {string} label
 * @param {string} text
 * @param {() => void} act
 */
function action(label, text, act) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = text;
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
 * Keeps the focus on the button or list of the same name while a table is filled anew.
 * @param {HTMLTableSectionElement} body
 * @param {() => void} refill
 */
function keepFocus(body, refill) {
  const focused = body.querySelector(':focus')?.getAttribute('aria-label');
  refill();
  if (!focused) return;
  for (const control of /** @type {NodeListOf<HTMLElement>} */ (body.querySelectorAll('button, select'))) {
    if (control.getAttribute('aria-label') === focused) control.focus();
  }
}

/**
 * @typedef {object} InstrumentActs
 * @property {(which: 'muted' | 'solo', key: string) => void} toggle
 * @property {(key: string, other: string) => void} reassign all notes of an instrument
 * @property {(key: string | null) => void} spotlight the notes of one, or of all
 *
 * @param {HTMLTableSectionElement} body
 * @param {Instrument[]} instruments
 * @param {{muted: Set<string>, solo: Set<string>, locked: boolean}} state
 * @param {InstrumentActs} acts
 */
export function fillInstruments(body, instruments, state, acts) {
  keepFocus(body, () => {
    body.replaceChildren();
    for (const instrument of instruments) addInstrument(body, instrument, state, acts);
  });
}

/**
 * @param {HTMLTableSectionElement} body
 * @param {Instrument} instrument
 * @param {{muted: Set<string>, solo: Set<string>, locked: boolean}} state
 * @param {InstrumentActs} acts
 */
function addInstrument(body, { key, program, isDrum, notes }, state, acts) {
  const name = instrumentName(program, isDrum);
  const pitches = notes.map(({ pitch }) => pitch);
  const low = pitches.reduce((a, b) => Math.min(a, b), 127);
  const high = pitches.reduce((a, b) => Math.max(a, b), 0);
  const row = body.insertRow();
  row.dataset.key = key;
  const swatch = document.createElement('span');
  swatch.className = 'swatch';
  swatch.style.backgroundColor = colour(program, isDrum);
  const title = document.createElement('span');
  title.append(swatch, name);
  const mute = toggle(`Mute ${name}`, state.muted.has(key), 'Mute', () => acts.toggle('muted', key));
  const solo = toggle(`Solo ${name}`, state.solo.has(key), 'Solo', () => acts.toggle('solo', key));
  const range = isDrum ? '–' : `${pitchName(low)} to ${pitchName(high)}`;
  const list = document.createElement('select');
  list.setAttribute('aria-label', `Give the notes of ${name} to`);
  list.disabled = state.locked;
  list.append(new Option(name, key));
  const fillList = () => {
    if (list.options.length > 1) return;
    list.replaceChildren(instrumentOptions());
    list.value = key;
  };
  list.addEventListener('pointerdown', fillList);
  list.addEventListener('focus', fillList);
  list.addEventListener('change', () => acts.reassign(key, list.value));
  fill(row, [title, String(notes.length), range, mute, solo, list]);
  row.addEventListener('pointerenter', () => acts.spotlight(key));
  row.addEventListener('pointerleave', () => acts.spotlight(null));
  row.addEventListener('focusin', () => acts.spotlight(key));
  row.addEventListener('focusout', () => acts.spotlight(null));
  row.addEventListener('keydown', ({ key: pressed, target }) => {
    if (target instanceof HTMLSelectElement) return;
    if (pressed === 'm' || pressed === 'M') acts.toggle('muted', key);
    if (pressed === 's' || pressed === 'S') acts.toggle('solo', key);
  });
}

/**
 * Marks the instruments that sound.
 * @param {HTMLTableSectionElement} body
 * @param {Set<string>} keys
 */
export function markSounding(body, keys) {
  for (const row of body.rows) row.classList.toggle('sounding', keys.has(row.dataset.key ?? ''));
}

/**
 * @param {HTMLTableSectionElement} body
 * @param {Note[]} notes
 * @param {{selected: Note | null, locked: boolean}} state
 * @param {{edit: (note: Note) => void, remove: (note: Note) => void}} acts
 */
export function fillNotes(body, notes, { selected, locked }, { edit, remove }) {
  keepFocus(body, () => {
    body.replaceChildren();
    for (const note of notes) {
      const row = body.insertRow();
      row.classList.toggle('selected', note === selected);
      const name = instrumentName(note.program, note.isDrum);
      const pitch = note.isDrum ? `key ${note.pitch}` : pitchName(note.pitch);
      const which = `${pitch} of ${name} at ${note.onset.toFixed(2)} s`;
      const change = toggle(`Edit ${which}`, note === selected, 'Edit', () => edit(note));
      const away = action(`Delete ${which}`, 'Delete', () => remove(note));
      change.disabled = away.disabled = locked;
      row.addEventListener('keydown', ({ key }) => {
        if (key === 'Delete' && !locked) remove(note);
      });
      const length = `${(note.offset - note.onset).toFixed(2)} s`;
      const sure = `${Math.round(note.confidence * 100)} %`;
      const buttons = document.createElement('span');
      buttons.className = 'buttons';
      buttons.append(change, away);
      fill(row, [`${note.onset.toFixed(2)} s`, length, pitch, name, sure, buttons]);
    }
  });
}

/**
 * @param {HTMLTableSectionElement} body
 * @param {import('./leakage.js').Change[]} changes
 * @param {Note[]} notes
 * @param {boolean} locked
 * @param {(change: import('./leakage.js').Change, back: boolean) => void} act
 */
export function fillChanges(body, changes, notes, locked, act) {
  keepFocus(body, () => {
    body.replaceChildren();
    for (const change of changes) {
      const { note, became, reason } = change;
      const row = body.insertRow();
      const undone = isUndone(change, notes);
      const what = `${pitchName(note.pitch)} of ${instrumentName(note.program, false)}`;
      const which = `${what} at ${note.onset.toFixed(2)} s`;
      const button = toggle(`Keep ${which}`, undone, undone ? 'Kept' : 'Keep', () => act(change, !undone));
      button.disabled = locked;
      const done = became ? `now ${instrumentName(became.program, became.isDrum)}` : 'removed';
      fill(row, [`${note.onset.toFixed(2)} s`, what, undone ? 'as the model had it' : done, reason, button]);
    }
  });
}
