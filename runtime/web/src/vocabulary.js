/**
 * Meaning of token ids: kind and value of each.
 */

/**
 * @typedef {{kind: string, value: number}} Event
 */

/**
 * Events by token id; null for ids without meaning.
 * @param {import('./manifest.js').Vocabulary} vocabulary
 * @returns {(Event | null)[]}
 */
export function eventTable(vocabulary) {
  /** @type {(Event | null)[]} */
  const events = new Array(vocabulary.size).fill(null);
  for (const { kind, first_id, min_value, max_value } of vocabulary.ranges) {
    for (let value = min_value; value <= max_value; value++) {
      events[first_id + value - min_value] = { kind, value };
    }
  }
  return events;
}
