/**
 * Records from the microphone until it is stopped.
 */
import { Mt3Error } from '../src/index.js';

export class Recorder {
  /** @type {MediaRecorder | null} */
  #recorder = null;

  get running() {
    return this.#recorder !== null;
  }

  /**
   * Starts; the promise is kept when `stop` was called.
   * @returns {Promise<Blob>}
   */
  async start() {
    if (!navigator.mediaDevices || typeof MediaRecorder === 'undefined') {
      throw new Mt3Error('This browser lets no page record; record with another program.');
    }
    let stream;
    try {
      const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch {
      throw new Mt3Error('The microphone was refused, or there is none. Allow it, or choose a file.');
    }
    const recorder = (this.#recorder = new MediaRecorder(stream));
    /** @type {Blob[]} */
    const parts = [];
    recorder.addEventListener('dataavailable', ({ data }) => parts.push(data));
    const stopped = new Promise((resolve) => recorder.addEventListener('stop', resolve));
    recorder.start();
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    return new Blob(parts);
  }

  stop() {
    this.#recorder?.stop();
    this.#recorder = null;
  }
}

/**
 * Starts and stops recording by a button.
 * @param {HTMLButtonElement} button
 * @param {{say: (text: string) => void, complain: (error: unknown) => void,
 *   open: (sound: File) => Promise<void>}} page
 */
export function watchRecorder(button, { say, complain, open }) {
  const recorder = new Recorder();
  const title = button.textContent;
  button.addEventListener('click', async () => {
    if (recorder.running) return recorder.stop();
    try {
      button.textContent = 'Stop recording';
      say('Recording.');
      const sound = await recorder.start();
      button.textContent = title;
      await open(new File([sound], 'recording'));
    } catch (error) {
      complain(error);
    } finally {
      button.textContent = title;
    }
  });
}
