/**
 * Tracks, channels, ports and program changes of a MIDI file, decided as
 * `mt3_runtime.files.channels` does: fifteen melodic channels are shared in time, drums are on the
 * tenth, and only notes that find all channels sounding go to further ports.
 */
import { Mt3Error } from './errors.js';

const DRUM_CHANNEL = 9;
const MELODIC_CHANNELS = Array.from({ length: 16 }, (_, i) => i).filter((i) => i !== DRUM_CHANNEL);

/** Ports that a MIDI port message, of one byte, can tell apart. */
const MAX_PORTS = 256;
/** Tracks that the header of a file can count, less the one for the tempo. */
const MAX_TRACKS = 65_534;

/**
 * @typedef {{start: number, end: number, pitch: number, velocity: number, channel: number}} Span
 * @typedef {{layer: number, isDrum: boolean, program: number, port: number, spans: Span[],
 *   changes: [number, number][]}} Track
 * @typedef {{number: number, track: number | null, until: number,
 *   last: Map<number, {span: Span, track: number}>}} Channel
 * @typedef {import('./assembler.js').Note} Note
 */

/**
 * Rounds to a whole number, halves to the even one.
 * @param {number} value
 */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Compares arrays of numbers in the order of a dictionary.
 * @param {readonly number[]} a
 * @param {readonly number[]} b
 */
export function compare(a, b) {
  for (let i = 0; i < a.length; i++) {
    const difference = /** @type {number} */ (a[i]) - /** @type {number} */ (b[i]);
    if (difference) return difference;
  }
  return 0;
}

/**
 * Distributes notes, ordered by onset, over tracks and channels.
 * @param {Note[]} ordered
 * @param {number} ticksPerSecond
 * @returns {Track[]}
 */
export function assignChannels(ordered, ticksPerSecond) {
  let tracks = layers(ordered, ticksPerSecond);
  const melodic = tracks.filter(({ isDrum }) => !isDrum);
  if (melodic.length <= MELODIC_CHANNELS.length) {
    melodic.forEach((track, i) => {
      for (const span of track.spans) span.channel = /** @type {number} */ (MELODIC_CHANNELS[i]);
    });
  } else {
    tracks.push(...furtherPorts(melodic, shareChannels(melodic)));
    tracks = tracks.filter(({ spans }) => spans.length);
  }
  if (tracks.length > MAX_TRACKS || tracks.some(({ port }) => port >= MAX_PORTS)) {
    throw new Mt3Error('More notes sound at once than a MIDI file can hold; save JSON or CSV.');
  }
  placeChanges(tracks);
  return tracks;
}

/**
 * Tracks in which equal pitches never overlap.
 * @param {Note[]} ordered
 * @param {number} rate ticks per second
 */
function layers(ordered, rate) {
  /** @type {Map<string, Track>} */
  const tracks = new Map();
  /** @type {Map<string, number[]>} ends of the layers of a voice, in ticks */
  const voices = new Map();
  for (const note of ordered) {
    const start = roundHalfEven(note.onset * rate);
    const end = Math.max(roundHalfEven(note.offset * rate), start + 1);
    const voice = `${note.program} ${note.isDrum} ${note.pitch}`;
    const ends = voices.get(voice) ?? [];
    voices.set(voice, ends);
    const gap = ends.findIndex((until) => until <= start);
    const layer = gap < 0 ? ends.length : gap;
    ends[layer] = end;
    const key = `${layer} ${note.isDrum} ${note.program}`;
    let track = tracks.get(key);
    if (!track) {
      const { isDrum, program } = note;
      track = { layer, isDrum, program, port: 0, spans: [], changes: [] };
      tracks.set(key, track);
    }
    const velocity = Math.min(Math.max(note.velocity, 1), 127);
    track.spans.push({ start, end, pitch: note.pitch, velocity, channel: DRUM_CHANNEL });
  }
  return [...tracks.values()].sort((a, b) =>
    compare([a.layer, Number(a.isDrum), a.program], [b.layer, Number(b.isDrum), b.program]),
  );
}

/**
 * Gives notes the channels of one port; returns those for which there is none, by track.
 * @param {Track[]} tracks
 */
function shareChannels(tracks) {
  /** @type {Channel[]} */
  const channels = MELODIC_CHANNELS.map((number) => ({
    number,
    track: null,
    until: -1,
    last: new Map(),
  }));
  /** @type {Map<number, Span[]>} */
  const rest = new Map();
  const events = inOrder(tracks);
  for (let at = 0; at < events.length; ) {
    const tick = /** @type {Event} */ (events[at]).tick;
    let end = at;
    while (end < events.length && events[end]?.tick === tick) end++;
    // Tracks that have a channel go first, so that no other takes it from them.
    const having = new Set(channels.map(({ track }) => track));
    const group = events.slice(at, end);
    const waiting = (/** @type {Event} */ { track }) => Number(!having.has(track));
    group.sort((a, b) => waiting(a) - waiting(b));
    for (const { track, span } of group) {
      const channel = findChannel(channels, span, track);
      if (channel) take(channel, span, track);
      else rest.set(track, [...(rest.get(track) ?? []), span]);
    }
    at = end;
  }
  for (const [number, spans] of rest) {
    const track = /** @type {Track} */ (tracks[number]);
    const moved = new Set(spans);
    track.spans = track.spans.filter((span) => !moved.has(span));
  }
  return rest;
}

/**
 * The track's own channel, or the one that has been silent for longest.
 * @param {Channel[]} channels
 * @param {Span} span
 * @param {number} track
 */
function findChannel(channels, span, track) {
  const own = channels.find((channel) => channel.track === track);
  if (own && (accepts(own, span, track) || makeRoom(own, span))) return own;
  const silent = channels.filter(({ until }) => until <= span.start);
  const free = silent.filter((channel) => accepts(channel, span, track));
  if (free.length) return free.reduce((best, next) => (next.until < best.until ? next : best));
  return silent.find((channel) => makeRoom(channel, span));
}

/**
 * Whether the last note of equal pitch ends before this one begins, for every player.
 * @param {Channel} channel
 * @param {Span} span
 * @param {number} track
 */
function accepts(channel, span, track) {
  const before = channel.last.get(span.pitch);
  return !before || compare([before.span.end, before.track], [span.start, track]) <= 0;
}

/**
 * Ends the last note of equal pitch a tick early, if it lasts more than one.
 * @param {Channel} channel
 * @param {Span} span
 */
function makeRoom(channel, span) {
  const before = channel.last.get(span.pitch)?.span;
  if (!before) throw new Error('no note to shorten');
  if (before.end - before.start === 1) return false;
  before.end -= 1;
  return true;
}

/**
 * Puts a note on a channel.
 * @param {Channel} channel
 * @param {Span} span
 * @param {number} track
 */
function take(channel, span, track) {
  span.channel = channel.number;
  channel.track = track;
  channel.until = Math.max(channel.until, span.end);
  channel.last.set(span.pitch, { span, track });
}

/**
 * Tracks for notes that found no channel, each with a channel of its own.
 * @param {Track[]} tracks
 * @param {Map<number, Span[]>} rest
 */
function furtherPorts(tracks, rest) {
  return [...rest.keys()]
    .sort((a, b) => a - b)
    .map((number, place) => {
      const spans = /** @type {Span[]} */ (rest.get(number));
      const port = Math.floor(place / MELODIC_CHANNELS.length) + 1;
      const channel = MELODIC_CHANNELS[place % MELODIC_CHANNELS.length];
      for (const span of spans) span.channel = /** @type {number} */ (channel);
      const { layer, isDrum, program } = /** @type {Track} */ (tracks[number]);
      return { layer, isDrum, program, port, spans, changes: [] };
    });
}

/**
 * Sets the program at the start of each track, and before notes that would have another.
 * @param {Track[]} tracks
 */
function placeChanges(tracks) {
  /** @type {Map<string, number>} */
  const programs = new Map();
  for (const { tick, track: number, span } of inOrder(tracks, true)) {
    const track = /** @type {Track} */ (tracks[number]);
    const heard = [
      `all ${span.channel}`,
      `port ${track.port} ${span.channel}`,
      `track ${number} ${span.channel}`,
    ];
    if (!track.changes.length || heard.some((key) => programs.get(key) !== track.program)) {
      track.changes.push([tick, span.channel]);
      for (const key of heard) programs.set(key, track.program);
    }
  }
}

/** @typedef {{tick: number, track: number, span: Span}} Event */

/**
 * Notes as a player meets them; with heads first notes at 0 too.
 * @param {Track[]} tracks
 * @returns {Event[]}
 */
function inOrder(tracks, heads = false) {
  /** @type {Event[]} */
  const events = [];
  tracks.forEach((track, number) => {
    if (heads) events.push({ tick: 0, track: number, span: /** @type {Span} */ (track.spans[0]) });
    for (const span of track.spans) events.push({ tick: span.start, track: number, span });
  });
  return events.sort((a, b) => a.tick - b.tick || a.track - b.track);
}
