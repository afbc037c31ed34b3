/**
 * The page: a recording in, notes to see, hear and download out.
 */
import { calibrated, Mt3Error, readRecording } from '../src/index.js';
import { LocalEngine } from './engine.js';
import { save } from './files.js';
import { Player } from './player.js';
import { Recorder } from './recorder.js';
import { Roll } from './roll.js';
import { ServerEngine } from './server.js';
import { fillInstruments, fillNotes, instrumentsOf, keyOf } from './tables.js';

/** @typedef {import('../src/assembler.js').Note} Note */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new (...args: any[]) => T} kind
 * @returns {T}
 */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

const ui = {
  file: element('file', HTMLInputElement),
  drop: element('drop', HTMLLabelElement),
  record: element('record', HTMLButtonElement),
  message: element('message', HTMLParagraphElement),
  progress: element('progress', HTMLProgressElement),
  cancel: element('cancel', HTMLButtonElement),
  result: element('result', HTMLElement),
  play: element('play', HTMLButtonElement),
  blend: element('blend', HTMLInputElement),
  confidence: element('confidence', HTMLInputElement),
  threshold: element('threshold', HTMLOutputElement),
  zoom: element('zoom', HTMLInputElement),
  view: element('view', HTMLDivElement),
  undo: element('undo', HTMLButtonElement),
  help: element('help', HTMLDetailsElement),
  exactness: element('exactness', HTMLParagraphElement),
  privacy: element('privacy', HTMLParagraphElement),
};
const bodies = {
  instruments: /** @type {HTMLTableSectionElement} */ (
    element('instruments', HTMLTableElement).tBodies[0]
  ),
  notes: /** @type {HTMLTableSectionElement} */ (element('notes', HTMLTableElement).tBodies[0]),
};

const engine = new LocalEngine(new URL('../model/', import.meta.url).href);
// A static site says that it is one; a page that a server gives out asks that server.
const isSite = document.querySelector('meta[name="offline"]') !== null;
const server = isSite ? null : new ServerEngine();
if (server) {
  ui.privacy.textContent = (await ServerEngine.found())
    ? 'Recordings are transcribed by the server that this page came from, and kept nowhere.'
    : 'There is no server here that transcribes. Start mt3 serve, or build a site: mt3 web build.';
}
/** Rate at which recordings are drawn and played, if a server transcribes them [Hz]. */
const PLAYED = 16_000;
const roll = new Roll(element('roll', HTMLCanvasElement));
const player = new Player();
const recorder = new Recorder();
const state = {
  /** @type {Note[]} */
  notes: [],
  /** @type {Note[]} removed ones, the last of them last */
  removed: [],
  muted: new Set(),
  solo: new Set(),
  name: 'notes',
  model: '',
  /** @type {AbortController | null} */
  running: null,
};

/** Notes that are not hidden by the slider: what is downloaded. */
const kept = () => state.notes.filter(({ confidence }) => confidence >= Number(ui.confidence.value));

/** Notes that are drawn and played. */
const audible = () =>
  kept().filter((note) =>
    state.solo.size ? state.solo.has(keyOf(note)) : !state.muted.has(keyOf(note)),
  );
player.audible = audible;

/**
 * Says something in the live region.
 * @param {string} text
 */
function say(text, isError = false) {
  ui.message.textContent = text;
  ui.message.classList.toggle('error', isError);
}

/** @param {unknown} error */
function complain(error) {
  if (error instanceof DOMException && error.name === 'AbortError') {
    say(`Stopped: ${state.notes.length} notes so far.`);
  } else if (error instanceof Mt3Error) {
    say(error.message, true);
  } else {
    say(`Something went wrong (${error}). Load the page again, or use mt3 transcribe.`, true);
  }
}

/**
 * Transcribes a file, from its bytes to the tables.
 * @param {Blob} file
 * @param {string} name
 */
async function open(file, name) {
  state.running?.abort();
  const controller = (state.running = new AbortController());
  const { signal } = controller;
  player.pause();
  ui.progress.hidden = ui.cancel.hidden = false;
  ui.progress.removeAttribute('value');
  try {
    if (server) return await openThere(server, file, name, signal);
    say('Loading the model (15 MB, once).');
    const manifest = await engine.load();
    signal.throwIfAborted();
    say(`Reading ${name}.`);
    const rate = manifest.segments.sample_rate;
    const recording = await readRecording(file, rate);
    signal.throwIfAborted();
    begin(name, recording.samples, rate);
    state.model = manifest.name;
    ui.exactness.textContent =
      recording.reader === 'exact'
        ? 'This WAV file was read exactly; it was resampled nearly as mt3 does (66 dB below the signal).'
        : 'This file was read by the browser; notes can differ a little from those of mt3 transcribe.';
    say(`Transcribing ${recording.seconds.toFixed(1)} seconds.`);
    const result = await engine.transcribe(recording.samples, manifest, {
      signal,
      progress: ({ done, total, notes }) => {
        if (signal.aborted) return;
        state.notes.push(...notes.map((note) => withConfidence(note, manifest)));
        ui.progress.value = done / total;
        say(`Segment ${done} of ${total}: ${state.notes.length} notes.`);
        render();
      },
    });
    if (signal.aborted) return;
    state.notes = result.notes.map((note) => withConfidence(note, manifest));
    const cut = result.segments.filter(({ truncated }) => truncated).length;
    const warning = cut ? ` ${cut} segments reached the token limit and may lack notes.` : '';
    say(`${state.notes.length} notes in ${result.duration.toFixed(1)} seconds of music.${warning}`);
    render();
  } catch (error) {
    if (state.running === controller) complain(error);
  } finally {
    if (state.running === controller) {
      state.running = null;
      ui.progress.hidden = ui.cancel.hidden = true;
    }
  }
}

/**
 * Shows a new recording, without notes.
 * @param {string} name
 * @param {Float32Array} samples
 * @param {number} rate
 */
function begin(name, samples, rate) {
  Object.assign(state, { notes: [], removed: [], name: stemOf(name) });
  state.muted.clear();
  state.solo.clear();
  player.setSound(samples, rate);
  roll.setWave(samples, rate);
  ui.result.hidden = false;
  render();
}

/**
 * Has a file transcribed by the server; it is read here only to be drawn and played.
 * @param {ServerEngine} there
 * @param {Blob} file
 * @param {string} name
 * @param {AbortSignal} signal
 */
async function openThere(there, file, name, signal) {
  say(`Reading ${name}.`);
  const { samples } = await readRecording(file, PLAYED);
  signal.throwIfAborted();
  begin(name, samples, PLAYED);
  ui.exactness.textContent = 'Transcribed by the server: these are the notes of mt3 transcribe.';
  say('Waiting for the server.');
  const result = await there.transcribe(file, {
    signal,
    say,
    progress: ({ done, notes }) => {
      state.notes.push(...notes);
      if (done < 0) return;
      ui.progress.value = done;
      say(`${Math.round(done * 100)} %: ${state.notes.length} notes.`);
      render();
    },
  });
  Object.assign(state, { notes: result.notes, model: result.model });
  const warnings = result.warnings.map((text) => ` ${text}.`).join('');
  say(`${result.notes.length} notes in ${result.duration.toFixed(1)} seconds of music.${warnings}`);
  render();
}

/**
 * @param {Note} note
 * @param {import('../src/manifest.js').Manifest} manifest
 */
const withConfidence = (note, manifest) => ({ ...note, confidence: calibrated(note, manifest) });

/** @param {string} name */
const stemOf = (name) => name.replace(/\.[^.]*$/, '') || 'notes';

/** Draws everything from the state. */
function render() {
  fillInstruments(bodies.instruments, instrumentsOf(kept()), state, (which, key) => {
    const set = state[which];
    if (!set.delete(key)) set.add(key);
    render();
  });
  ui.threshold.value = `${Math.round(Number(ui.confidence.value) * 100)} %`;
  ui.undo.disabled = !state.removed.length;
  ui.play.textContent = player.playing ? 'Pause' : 'Play';
  listNotes();
  roll.draw(audible(), player.time);
}

/** The notes within four seconds of the playhead, two hundred at most. */
function listNotes() {
  const near = audible().filter((note) => Math.abs(note.onset - player.time) < 4);
  fillNotes(bodies.notes, near.slice(0, 200), remove);
}

/** @param {Note} note */
function remove(note) {
  state.notes = state.notes.filter((other) => other !== note);
  state.removed.push(note);
  say(`Deleted one note; Undo takes it back. ${state.notes.length} notes.`);
  render();
  ui.undo.focus();
}

function undo() {
  const note = state.removed.pop();
  if (!note) return;
  state.notes = [...state.notes, note].sort((a, b) => a.onset - b.onset);
  say(`Took a note back. ${state.notes.length} notes.`);
  render();
}

async function togglePlay() {
  if (player.playing) player.pause();
  else await player.play();
  render();
  if (player.playing) requestAnimationFrame(follow);
}

/** Moves the playhead while it plays; a few times a second where motion is unwanted. */
function follow() {
  roll.draw(audible(), player.time);
  if (!player.playing) return render();
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (calm) setTimeout(follow, 500);
  else requestAnimationFrame(follow);
}

/** @param {number} time */
async function seek(time) {
  await player.seek(time);
  render();
}

/** @param {number} factor */
function zoom(factor) {
  ui.zoom.value = String(Number(ui.zoom.value) * factor);
  roll.zoom = Number(ui.zoom.value);
  render();
}

/** @param {'midi' | 'json' | 'csv'} kind */
const download = (kind) =>
  save(kind, kept(), { name: state.name, model: state.model, duration: player.seconds });

function swap() {
  ui.blend.value = player.blend > 0.5 ? '0' : '1';
  player.setBlend(Number(ui.blend.value));
  say(player.blend > 0.5 ? 'Notes' : 'Original');
}

/** @type {Record<string, (event: KeyboardEvent) => unknown>} */
const KEYS = {
  ' ': togglePlay,
  ArrowLeft: ({ shiftKey }) => seek(player.time - (shiftKey ? 10 : 1)),
  ArrowRight: ({ shiftKey }) => seek(player.time + (shiftKey ? 10 : 1)),
  Home: () => seek(0),
  End: () => seek(player.seconds),
  x: swap,
  '+': () => zoom(1.25),
  '-': () => zoom(0.8),
  d: () => download('midi'),
  z: undo,
  '?': () => (ui.help.open = !ui.help.open),
};

document.addEventListener('keydown', (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target instanceof HTMLInputElement || ui.result.hidden) return;
  if (key === ' ' && target instanceof HTMLElement && target.matches('button, summary')) return;
  const act = KEYS[key] ?? KEYS[key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act(event);
});

ui.file.addEventListener('change', () => {
  const [file] = ui.file.files ?? [];
  if (file) open(file, file.name);
});
for (const type of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    ui.drop.classList.toggle('over', type === 'dragover');
  });
}
document.addEventListener('drop', ({ dataTransfer }) => {
  const [file] = dataTransfer?.files ?? [];
  if (file) open(file, file.name);
});
ui.record.addEventListener('click', async () => {
  if (recorder.running) return recorder.stop();
  try {
    ui.record.textContent = 'Stop recording';
    say('Recording.');
    const sound = await recorder.start();
    await open(sound, 'recording');
  } catch (error) {
    complain(error);
  } finally {
    ui.record.textContent = 'Record from the microphone';
  }
});
ui.cancel.addEventListener('click', () => {
  state.running?.abort();
  engine.close(); // a segment that is under way would go on
});
ui.play.addEventListener('click', togglePlay);
ui.undo.addEventListener('click', undo);
ui.blend.addEventListener('input', () => player.setBlend(Number(ui.blend.value)));
ui.confidence.addEventListener('input', render);
ui.zoom.addEventListener('input', () => zoom(1));
ui.view.addEventListener('pointerdown', ({ offsetX }) =>
  seek(roll.left(player.time) + offsetX / roll.zoom),
);
for (const kind of /** @type {const} */ (['midi', 'json', 'csv'])) {
  element(kind, HTMLButtonElement).addEventListener('click', () => download(kind));
}
addEventListener('resize', () => ui.result.hidden || render());

// A static site lists its files, so that it works without the network from the second visit on.
if ('serviceWorker' in navigator && isSite) {
  navigator.serviceWorker.register('service-worker.js').catch(() => {});
}
