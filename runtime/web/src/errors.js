/**
 * Errors that a person can act on: what happened, what was expected, what to do.
 */
export class Mt3Error extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = 'Mt3Error';
  }
}
