/**
 * Elements of the page, by their ids, with their types; lists of instruments to choose from.
 */
import { FAMILIES, instrumentName } from '../src/index.js';

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new (...args: any[]) => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

/** @param {string} id */
export const button = (id) => element(id, HTMLButtonElement);
/** @param {string} id */
export const input = (id) => element(id, HTMLInputElement);
/** @param {string} id */
export const select = (id) => element(id, HTMLSelectElement);

/**
 * The rows of a table.
 * @param {string} id
 */
export function rowsOf(id) {
  const [body] = element(id, HTMLTableElement).tBodies;
  if (!body) throw new Error(`the table ${id} has no body`);
  return body;
}

/**
 * All instruments, by family, drums last: options whose values are keys of instruments.
 * @returns {DocumentFragment}
 */
export function instrumentOptions() {
  const all = document.createDocumentFragment();
  for (const [family, name] of FAMILIES.entries()) {
    const group = document.createElement('optgroup');
    group.label = name;
    for (let program = family * 8; program < family * 8 + 8; program++) {
      group.append(new Option(instrumentName(program, false), String(program)));
    }
    all.append(group);
  }
  all.append(new Option(instrumentName(0, true), 'drums'));
  return all;
}
