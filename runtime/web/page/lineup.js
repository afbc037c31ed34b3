/**
 * The instruments that may occur: chosen by family, or told by the name of a stem's file.
 */
import { FAMILIES } from '../src/index.js';

/**
 * @typedef {import('../src/assembler.js').Note} Note
 * @typedef {{programs: Set<number>, drums: boolean}} Lineup
 */

/** Programs of stems, and words that name them in files. */
const STEMS = /** @type {[string, number[][] | null, string[]][]} */ ([
  ['bass', [[32, 40]], ['bass', 'bass guitar', 'sub bass']],
  ['piano', [[0, 8]], ['piano', 'keys', 'keyboard', 'keyboards']],
  ['synth lead', [[80, 85], [86, 88]], ['synth lead', 'lead synth', 'synth', 'lead']],
  ['synth pad', [[88, 104]], ['synth pad fx', 'synth pad', 'pad', 'pads', 'fx', 'sfx']],
  ['guitar', [[24, 32]], ['guitar', 'guitars', 'gtr', 'electric guitar', 'acoustic guitar', 'lead guitar', 'rhythm guitar']],
  ['strings', [[40, 52], [55, 56]], ['strings ensemble', 'strings', 'string ensemble', 'ensemble', 'orchestra']],
  ['drums', null, ['drums', 'drum', 'drum kit', 'drumkit', 'kit', 'percussion', 'high percs', 'high perc', 'cymbals', 'hats', 'hihats', 'hihat']],
  ['vocals', [[52, 55], [85, 86]], ['vocals', 'vocal', 'vox', 'voice', 'voices', 'lead vocals', 'backing vocals', 'choir']],
]); // prettier-ignore

/**
 * Makes a checkbox for every family and the drums, all of them on.
 * @param {HTMLElement} parent
 */
export function addFamilies(parent) {
  for (const name of [...FAMILIES, 'Drums']) {
    const label = document.createElement('label');
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.checked = true;
    label.append(box, name);
    parent.append(label);
  }
}

/** @param {HTMLElement} parent of the checkboxes */
export const boxesOf = (parent) => [
  .../** @type {NodeListOf<HTMLInputElement>} */ (parent.querySelectorAll('input[type=checkbox]')),
];

/**
 * What is chosen; null if everything may occur.
 * @param {HTMLElement} parent of the checkboxes
 * @returns {Lineup | null}
 */
export function chosen(parent) {
  const on = boxesOf(parent).map(({ checked }) => checked);
  if (on.every(Boolean)) return null;
  const programs = Array.from({ length: 128 }, (_, i) => i).filter((i) => on[i >> 3]);
  return { programs: new Set(programs), drums: on[FAMILIES.length] ?? false };
}

/** @param {Lineup | null} lineup */
export const isEmpty = (lineup) => lineup !== null && !lineup.drums && lineup.programs.size === 0;

/**
 * Notes of a line-up.
 * @param {Note[]} notes
 * @param {Lineup | null} lineup
 */
export const within = (notes, lineup) =>
  lineup
    ? notes.filter((note) => (note.isDrum ? lineup.drums : lineup.programs.has(note.program)))
    : notes;

/**
 * How the service is asked for a line-up.
 * @param {Lineup} lineup
 */
export const written = ({ programs, drums }) => [...programs, ...(drums ? ['drums'] : [])].join(',');

/**
 * The stem that a file holds, by the words of its name: the longest that occurs.
 * @param {string} name
 * @returns {{stem: string, lineup: Lineup} | null} null if it says nothing
 */
export function stemOfFile(name) {
  const words = ` ${(name.toLowerCase().match(/[a-z]+/g) ?? []).join(' ')} `;
  const found = STEMS.flatMap(([stem, ranges, aliases]) =>
    aliases.filter((alias) => words.includes(` ${alias} `)).map((alias) => ({ stem, ranges, alias })),
  ).sort((a, b) => b.alias.length - a.alias.length);
  const [best] = found;
  if (!best) return null;
  const programs = (best.ranges ?? []).flatMap(([a = 0, b = 0]) =>
    Array.from({ length: b - a }, (_, i) => a + i),
  );
  return { stem: best.stem, lineup: { programs: new Set(programs), drums: best.ranges === null } };
}
