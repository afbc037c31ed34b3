/**
 * What is asked for before a recording is transcribed: the instruments, and on a server the model
 * and the filter.
 */
import { Mt3Error } from '../src/index.js';
import { button, element, input, select } from './elements.js';
import { addFamilies, boxesOf, chosen, isEmpty } from './lineup.js';

const HERE =
  'Notes of other instruments are left out. (The server and mt3 transcribe do better: there the ' +
  'model cannot say them, and says the likeliest of those that are left.)';
const THERE = 'The model cannot say other instruments, and says the likeliest of those that are left.';

const ui = {
  families: element('families', HTMLDivElement),
  note: element('lineup-note', HTMLParagraphElement),
  server: element('server-settings', HTMLDivElement),
  model: select('model'),
  filter: select('filter'),
  gpu: input('gpu'),
};
/** Whether the site has what WebGPU takes, and the browser has WebGPU. */
const hasGpu =
  'gpu' in navigator && document.querySelector('meta[name="webgpu"]') !== null;

export class Settings {
  /** @param {string[] | null} models of the server; null if the browser transcribes */
  constructor(models) {
    this.models = models;
    addFamilies(ui.families);
    ui.note.textContent = models ? THERE : HERE;
    ui.server.hidden = models === null;
    if (ui.gpu.parentElement) ui.gpu.parentElement.hidden = models !== null || !hasGpu;
    ui.model.append(...(models ?? []).map((name) => new Option(name, name)));
    const all = (/** @type {boolean} */ on) => () => {
      for (const box of boxesOf(ui.families)) box.checked = on;
    };
    button('families-all').addEventListener('click', all(true));
    button('families-none').addEventListener('click', all(false));
  }

  /**
   * The options of the next transcription.
   * @returns {{lineup: import('./lineup.js').Lineup | null, query: Record<string, string>,
   *   gpu: boolean}}
   */
  read() {
    const lineup = chosen(ui.families);
    if (isEmpty(lineup)) throw new Mt3Error('No instrument is chosen. Choose one, or All.');
    /** @type {Record<string, string>} */
    const query = {};
    if (this.models && ui.model.value) query.model = ui.model.value;
    if (this.models && ui.filter.value !== 'on') query.auto_filter = ui.filter.value;
    return { lineup, query, gpu: hasGpu && ui.gpu.checked };
  }

  /** The settings in few words, to tell two results apart. */
  describe() {
    const boxes = boxesOf(ui.families);
    const on = boxes.filter(({ checked }) => checked).map(({ parentElement }) => parentElement?.textContent);
    const lineup = on.length === boxes.length ? '' : on.join(', ');
    const filter = this.models && ui.filter.value !== 'on' ? `filter ${ui.filter.value}` : '';
    return [filter, lineup].filter(Boolean).join(', ');
  }
}
