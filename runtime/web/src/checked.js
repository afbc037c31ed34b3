/**
 * A fast decoder that has to say what a sure one says: WebGPU beside WebAssembly.
 *
 * Drivers of graphics processors differ, and a rounding can change a token.  So the first segments
 * are decoded by both; the fast one goes on alone only if all tokens are equal, and the sure one
 * takes over for good when it fails.
 */

/**
 * @typedef {import('./decoder.js').Sequence} Sequence
 * @typedef {import('./segments.js').Segment} Segment
 * @typedef {{decode: (segments: Segment[]) => Promise<Sequence[]>, release: () => Promise<void>}} Decoder
 */

/** Segments that both decode before the fast one is trusted. */
export const CHECKED = 8;

export class CheckedDecoder {
  #agreed = 0;

  /**
   * @param {Decoder} fast
   * @param {Decoder} sure
   * @param {(remark: string) => void} tell says once why the fast one is not used
   */
  constructor(fast, sure, tell) {
    /** @type {Decoder | null} */
    this.fast = fast;
    this.sure = sure;
    this.tell = tell;
  }

  /**
   * @param {Segment[]} segments
   * @returns {Promise<Sequence[]>}
   */
  async decode(segments) {
    if (!this.fast) return this.sure.decode(segments);
    let found;
    try {
      found = await this.fast.decode(segments);
    } catch (error) {
      await this.#giveUp(`the graphics processor failed (${error}), so the processor was used`);
      return this.sure.decode(segments);
    }
    if (this.#agreed >= CHECKED) return found;
    const expected = await this.sure.decode(segments);
    if (expected.every((sequence, i) => areEqual(sequence.tokens, found[i]?.tokens))) {
      this.#agreed += segments.length;
    } else {
      await this.#giveUp('the graphics processor said other tokens, so the processor was used');
    }
    return expected;
  }

  /** Frees the memory of both. */
  async release() {
    await this.fast?.release();
    await this.sure.release();
  }

  /** @param {string} remark */
  async #giveUp(remark) {
    const { fast } = this;
    this.fast = null;
    this.tell(remark);
    await fast?.release().catch(() => {}); // a lost device releases nothing
  }
}

/**
 * @param {Int32Array} a
 * @param {Int32Array | undefined} b
 */
const areEqual = (a, b) => b?.length === a.length && a.every((token, i) => token === b[i]);
