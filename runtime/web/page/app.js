/**
 * The page: a recording in, notes to see, hear, edit and download out.
 */
import { Mt3Error } from '../src/index.js';
import { Compared } from './compared.js';
import { NoteEditor } from './editor.js';
import { button, element, input, rowsOf, select } from './elements.js';
import { LocalEngine } from './engine.js';
import { save } from './files.js';
import { listen } from './keys.js';
import { withChanges } from './leakage.js';
import { keepOffline } from './offline.js';
import { Opener } from './opening.js';
import { Player } from './player.js';
import { watchPointer } from './pointer.js';
import { watchRecorder } from './recorder.js';
import { isSounding, Roll } from './roll.js';
import { reassigned, Score } from './score.js';
import { ServerEngine } from './server.js';
import { Settings } from './settings.js';
import { fillChanges, fillInstruments, fillNotes, instrumentsOf, keyOf, markSounding } from './tables.js';

/** @typedef {import('../src/assembler.js').Note} Note */

const ui = {
  file: input('file'),
  drop: element('drop', HTMLLabelElement),
  record: button('record'),
  message: element('message', HTMLParagraphElement),
  progress: element('progress', HTMLProgressElement),
  cancel: button('cancel'),
  again: button('again'),
  result: element('result', HTMLElement),
  play: button('play'),
  blend: input('blend'),
  confidence: input('confidence'),
  threshold: element('threshold', HTMLOutputElement),
  zoom: input('zoom'),
  sound: select('sound'),
  view: element('view', HTMLDivElement),
  undo: button('undo'),
  redo: button('redo'),
  leakage: element('leakage', HTMLElement),
  help: element('help', HTMLDetailsElement),
  exactness: element('exactness', HTMLParagraphElement),
  privacy: element('privacy', HTMLParagraphElement),
};
const bodies = { instruments: rowsOf('instruments'), notes: rowsOf('notes'), changes: rowsOf('changes') };
const TITLE = document.title;

const engine = new LocalEngine(new URL('../model/', import.meta.url).href);
// A static site says that it is one; a page that a server gives out asks that server.
const isSite = document.querySelector('meta[name="offline"]') !== null;
const models = isSite ? null : await ServerEngine.found();
if (!isSite) {
  ui.privacy.textContent = models
    ? 'Recordings are transcribed by the server that this page came from, and kept nowhere.'
    : 'There is no server here that transcribes. Start mt3 serve, or build a site: mt3 web build.';
}
const opener = new Opener(engine, isSite ? null : new ServerEngine());
const settings = new Settings(isSite ? null : (models ?? []));
const roll = new Roll(element('roll', HTMLCanvasElement));
const player = new Player();
const score = new Score();
player.say = say;
const state = {
  muted: new Set(),
  solo: new Set(),
  /** @type {string | null} the instrument that is pointed at */
  spotlight: null,
  /** @type {import('./leakage.js').Change[]} */
  changes: [],
  /** @type {File[]} what was opened last */
  files: [],
  name: 'notes',
  model: '',
  title: '',
  /** @type {AbortController | null} */
  running: null,
};
const editor = new NoteEditor(score, {
  seconds: () => player.seconds,
  changed: (label) => (label ? edited(label) : render()),
});
const compared = new Compared({
  current: () => ({ title: state.title, notes: kept() }),
  changed: (text) => {
    say(text);
    render();
  },
  complain,
});

/** @type {{notes: Note[], limit: number, kept: Note[]}} */
let last = { notes: [], limit: -1, kept: [] };

/** Notes that are not hidden by the slider: what is downloaded. */
function kept() {
  const limit = Number(ui.confidence.value);
  if (last.notes !== score.notes || last.limit !== limit) {
    const notes = score.notes.filter(({ confidence }) => confidence >= limit);
    last = { notes: score.notes, limit, kept: notes };
  }
  return last.kept;
}

/** @param {Note[]} notes */
const unmuted = (notes) =>
  notes.filter((note) => (state.solo.size ? state.solo.has(keyOf(note)) : !state.muted.has(keyOf(note))));

/** Notes that are drawn. */
const visible = () => unmuted(kept());
player.audible = () => (compared.heard && compared.other ? unmuted(compared.other.notes) : visible());

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
    say(`Stopped: ${score.notes.length} notes so far.`);
  } else if (error instanceof Mt3Error) {
    say(error.message, true);
  } else {
    say(`Something went wrong (${error}). Load the page again, or use mt3 transcribe.`, true);
  }
}

/**
 * Transcribes files, from their bytes to the tables.
 * @param {File[]} files one recording, or its stems
 */
async function open(files) {
  state.running?.abort();
  const controller = (state.running = new AbortController());
  const { signal } = controller;
  player.pause();
  ui.progress.hidden = ui.cancel.hidden = false;
  ui.progress.removeAttribute('value');
  try {
    const options = settings.read();
    engine.useGpu(options.gpu);
    const again = files === state.files;
    const result = await opener.open(files, options, {
      signal,
      say: (text) => signal.aborted || say(text),
      begin: (samples, rate, exactness) => begin(files, { samples, rate, exactness, again }),
      more: (notes) => signal.aborted || (score.notes = [...score.notes, ...notes]),
      progress: (share, where) => {
        if (signal.aborted) return;
        ui.progress.value = share;
        document.title = `${Math.round(share * 100)} % – ${TITLE}`;
        say(`Transcribing ${where}: ${score.notes.length} notes.`);
        render();
      },
    });
    signal.throwIfAborted();
    score.reset(result.notes);
    state.changes = result.changes;
    state.model = result.model;
    state.title = [result.model, settings.describe()].filter(Boolean).join(', ');
    const remarks = result.remarks.map((text) => ` ${text}.`).join('');
    say(`${result.notes.length} notes in ${player.seconds.toFixed(1)} seconds of music.${remarks}`);
  } catch (error) {
    if (state.running === controller) complain(error);
  } finally {
    if (state.running === controller) {
      state.running = null;
      score.locked = false;
      ui.progress.hidden = ui.cancel.hidden = true;
      document.title = TITLE;
      if (!ui.result.hidden) render();
    }
  }
}

/**
 * Shows a recording, without notes.
 * @param {File[]} files
 * @param {{samples: Float32Array, rate: number, exactness: string, again: boolean}} sound
 */
function begin(files, { samples, rate, exactness, again }) {
  score.reset();
  score.locked = true;
  Object.assign(state, { files, changes: [], name: files[0]?.name.replace(/\.[^.]*$/, '') || 'notes' });
  if (!again) {
    compared.set(null);
    state.muted.clear();
    state.solo.clear();
    player.setSound(samples, rate);
    roll.setWave(samples, rate);
    compared.roll.setWave(samples, rate);
  }
  ui.exactness.textContent = exactness;
  ui.again.disabled = ui.result.hidden = false;
  zoom(again ? 1 : Math.max(1, ui.view.clientWidth / player.seconds / Number(ui.zoom.value)));
}

/** Draws everything from the state. */
function render() {
  const { locked } = score;
  fillInstruments(bodies.instruments, instrumentsOf(kept()), { ...state, locked }, {
    toggle: (which, key) => {
      const set = state[which];
      if (!set.delete(key)) set.add(key);
      render();
    },
    reassign,
    spotlight: (key) => {
      state.spotlight = key;
      draw();
    },
  });
  ui.leakage.hidden = !state.changes.length;
  fillChanges(bodies.changes, state.changes, score.notes, locked, (change, back) => {
    const what = back ? 'kept a note of the model' : 'let the filter change a note';
    if (score.edit(what, withChanges([change], score.notes, back))) edited(what);
  });
  ui.threshold.value = `${Math.round(Number(ui.confidence.value) * 100)} %`;
  ui.undo.disabled = locked || !score.canUndo;
  ui.redo.disabled = locked || !score.canRedo;
  ui.play.textContent = player.playing ? 'Pause' : 'Play';
  editor.show();
  compared.show(kept(), state.title);
  listNotes();
  draw();
}

/** Draws the rolls, and marks what sounds. */
function draw() {
  const notes = visible();
  const { time } = player;
  const others = unmuted(compared.other?.notes ?? []);
  const range = [...notes, ...others];
  roll.draw(notes, time, {
    range,
    spotlight: state.spotlight,
    selected: editor.note,
    unmatched: compared.unmatched(kept()),
    keyOf,
  });
  if (compared.other) compared.draw(others, range, time, roll.zoom);
  markSounding(bodies.instruments, new Set(notes.filter((n) => isSounding(n, time)).map(keyOf)));
}

/** The notes within four seconds of the playhead, two hundred at most. */
function listNotes() {
  const near = visible().filter((note) => Math.abs(note.onset - player.time) < 4);
  const how = { selected: editor.note, locked: score.locked };
  fillNotes(bodies.notes, near.slice(0, 200), how, {
    edit: (note) => editor.select(note === editor.note ? null : note),
    remove: (note) => {
      if (!score.exchange('deleted one note', note, null)) return;
      edited('deleted one note');
      ui.undo.focus();
    },
  });
}

/** @param {string} label of the edit */
function edited(label) {
  say(`${label[0]?.toUpperCase()}${label.slice(1)}; Undo takes it back. ${score.notes.length} notes.`);
  render();
}

/**
 * Gives all notes of an instrument to another.
 * @param {string} key
 * @param {string} other
 */
function reassign(key, other) {
  const given = score.notes.map((note) => (keyOf(note) === key ? reassigned(note, other) : note));
  const count = score.notes.filter((note) => keyOf(note) === key).length;
  const label = `gave ${count} notes to another instrument`;
  if (key !== other && score.edit(label, given)) edited(label);
}

/** @param {'undo' | 'redo'} which */
function step(which) {
  const label = score[which]();
  if (label) say(`${which === 'undo' ? 'Undone' : 'Done again'}: ${label}. ${score.notes.length} notes.`);
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
  draw();
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

/** @param {'midi' | 'json' | 'csv' | 'stems'} kind */
const download = (kind) =>
  save(kind, kept(), { name: state.name, model: state.model, duration: player.seconds });

function swap() {
  ui.blend.value = player.blend > 0.5 ? '0' : '1';
  player.setBlend(Number(ui.blend.value));
  say(player.blend > 0.5 ? 'Notes' : 'Original');
}

listen(
  {
    ' ': togglePlay,
    ArrowLeft: ({ shiftKey }) => seek(player.time - (shiftKey ? 10 : 1)),
    ArrowRight: ({ shiftKey }) => seek(player.time + (shiftKey ? 10 : 1)),
    ArrowUp: () => editor.shift(0, 1),
    ArrowDown: () => editor.shift(0, -1),
    ',': () => editor.shift(-0.01, 0),
    '.': () => editor.shift(0.01, 0),
    Delete: () => editor.remove(),
    Escape: () => editor.select(null),
    Home: () => seek(0),
    End: () => seek(player.seconds),
    x: swap,
    c: () => compared.swap(),
    '+': () => zoom(1.25),
    '-': () => zoom(0.8),
    d: () => download('midi'),
    z: () => step('undo'),
    y: () => step('redo'),
    '?': () => (ui.help.open = !ui.help.open),
  },
  () => !ui.result.hidden,
);

/** @param {FileList | null | undefined} list */
const openAll = (list) => list?.length && open([...list]);
ui.file.addEventListener('change', () => openAll(ui.file.files));
for (const type of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    ui.drop.classList.toggle('over', type === 'dragover');
  });
}
document.addEventListener('drop', ({ dataTransfer }) => openAll(dataTransfer?.files));
watchRecorder(ui.record, { say, complain, open: (sound) => open([sound]) });
ui.again.addEventListener('click', () => open(state.files));
ui.cancel.addEventListener('click', () => {
  state.running?.abort();
  engine.close(); // a segment that is under way would go on
});
ui.play.addEventListener('click', togglePlay);
ui.undo.addEventListener('click', () => step('undo'));
ui.redo.addEventListener('click', () => step('redo'));
ui.blend.addEventListener('input', () => player.setBlend(Number(ui.blend.value)));
ui.confidence.addEventListener('input', render);
ui.sound.addEventListener('change', () => player.setPlain(ui.sound.value === 'tones'));
ui.zoom.addEventListener('input', () => zoom(1));
button('changes-all').addEventListener('click', () => {
  const what = 'kept all notes that the filter changed';
  if (score.edit(what, withChanges(state.changes, score.notes, true))) edited(what);
});
watchPointer(ui.view, roll, { seek, select: (note) => editor.select(note), shift: editor.shift.bind(editor) });
for (const kind of /** @type {const} */ (['midi', 'json', 'csv', 'stems'])) {
  button(kind).addEventListener('click', () => download(kind));
}
for (const source of [globalThis, matchMedia('(prefers-color-scheme: dark)')]) {
  for (const type of ['resize', 'change']) source.addEventListener(type, () => ui.result.hidden || render());
}
addEventListener('beforeunload', (event) => {
  if (state.running || score.canUndo) event.preventDefault(); // the browser asks
});
if (isSite) keepOffline((text) => (ui.privacy.textContent += ` ${text}`));
