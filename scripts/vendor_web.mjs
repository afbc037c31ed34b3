#!/usr/bin/env node
/**
 * Makes what the page plays notes with, runtime/web/vendor: SpessaSynth as one module and its
 * worklet, and General MIDI sounds below 1 MB, cut from FluidR3Mono.
 *
 *     npm ci --ignore-scripts --prefix runtime/web
 *     apt-get install ffmpeg fluidr3mono-gm-soundfont
 *     node scripts/vendor_web.mjs ESBUILD
 *
 * ESBUILD is the program of the npm package of that name.  Of every family a few instruments are
 * kept, each with a few samples at 22.05 kHz; the other programs of the family sound like them.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const web = fileURLToPath(new URL('../runtime/web', import.meta.url));
const modules = `${web}/node_modules`;
const core = await import(`${modules}/spessasynth_core/dist/index.js`);
const { BasicInstrument, BasicPreset, BasicSample, BasicSoundBank, SoundBankLoader } = core;
const { resample } = await import(`${web}/src/resample.js`);
const [esbuild = 'esbuild'] = process.argv.slice(2);
const SOURCE = '/usr/share/fluidr3mono-gm-soundfont/FluidR3Mono_GM.sf3';
const LICENCE = '/usr/share/doc/fluidr3mono-gm-soundfont/copyright';
const RATE = 22_050;
const QUALITY = '0';
/** Loops below this keep their rate [samples]. */
const SHORT_LOOP = 2000;
/** The generator that makes a zone sound at one key whatever is played. */
const FIXED_KEY = core.GeneratorTypes.keyNum;
const VELOCITY = 100;
/** Longest sample that is kept without a loop [s]; a fade ends it. */
const LONGEST = 2.5;

/** Programs that are kept, and the ones that sound like them. */
const KEPT = new Map([
  [0, [0, 1, 2, 3]],
  [4, [4, 5]],
  [6, [6, 7, 15]],
  [9, [8, 9, 10, 14, 113]],
  [11, [11]],
  [12, [12, 13, 108, 112, 114, 115]],
  [16, [16, 17, 18, 19, 20]],
  [21, [21, 22, 23]],
  [24, [24, 104, 106, 107]],
  [25, [25, 105]],
  [27, [26, 27, 28, 31]],
  [30, [29, 30]],
  [33, [32, 33, 34, 35, 36, 37]],
  [38, [38, 39]],
  [40, [40, 41, 110]],
  [42, [42, 43]],
  [45, [45]],
  [46, [46]],
  [47, [47, 116, 117, 118, 127]],
  [48, [44, 48, 49, 50, 51]],
  [52, [52, 53, 54, 85, 91]],
  [56, [56, 59]],
  [57, [57, 58]],
  [60, [60]],
  [61, [55, 61, 62, 63]],
  [65, [64, 65, 66, 67]],
  [71, [68, 69, 70, 71, 109, 111]],
  [73, [72, 73, 74, 75, 76, 77, 78, 79]],
  [81, [80, 81, 82, 83, 84, 86, 87]],
  [89, [88, 89, 90, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101, 102, 103, 119, 120, 121, 122, 123, 124, 125, 126]],
]);
/** Samples of an instrument that are kept. */
const SAMPLES = 3;

/** Percussion keys that have a sound of their own; others take that of the nearest. */
const KEYS = [36, 38, 40, 42, 44, 46, 41, 45, 48, 49, 51, 54, 56, 37, 39, 60, 62, 70, 75];
/** Keys of pitched instruments of which there are to be sounds. */
const LOWEST = 24;
const HIGHEST = 103;

/** What a preset plays at a key: the zone of an instrument, with the preset's zone around it. */
function zoneAt(preset, key) {
  const holds = (zone) =>
    (!zone.hasKeyRange || (zone.keyRange.min <= key && key <= zone.keyRange.max)) &&
    (!zone.hasVelRange || (zone.velRange.min <= VELOCITY && VELOCITY <= zone.velRange.max));
  for (const outer of preset.zones.filter(holds)) {
    const inner = outer.instrument.zones.find(holds);
    if (inner) return { outer, inner };
  }
  return null;
}

/** Zones of a pitched preset, few and evenly spread, each with the lowest key it is to have. */
function spread(preset) {
  const found = [];
  for (let key = LOWEST; key <= HIGHEST; key++) {
    const zone = zoneAt(preset, key);
    if (!zone) continue;
    const last = found.at(-1);
    if (last?.zone.inner.sample === zone.inner.sample) last.to = key;
    else found.push({ zone, from: key, to: key });
  }
  const count = Math.min(SAMPLES, found.length);
  const at = (i) => Math.min(found.length - 1, Math.round(((i + 0.5) * found.length) / count - 0.5));
  const some = [...new Set(Array.from({ length: count }, (_, i) => found[at(i)]))];
  return some.map((one, i) => {
    const before = some[i - 1];
    return { ...one.zone, low: before ? (before.to + one.from + 1) >> 1 : 0 };
  });
}

/** Zones of the drums, each with the lowest key it is to have. */
function spreadDrums(preset) {
  const keys = [...KEYS].sort((a, b) => a - b);
  return keys.map((key, i) => {
    const low = i ? (keys[i - 1] + key + 1) >> 1 : 0;
    return { ...zoneAt(preset, key), low, key };
  });
}

/** Samples as Vorbis. */
function encode(audio, rate) {
  const data = Buffer.from(audio.buffer, audio.byteOffset, audio.byteLength);
  const input = ['-v', 'error', '-f', 'f32le', '-ar', `${rate}`, '-ac', '1', '-i', '-'];
  const plain = ['-map_metadata', '-1', '-fflags', '+bitexact', '-flags:a', '+bitexact'];
  const output = ['-c:a', 'libvorbis', '-q:a', QUALITY, '-f', 'ogg', '-'];
  return execFileSync('ffmpeg', [...input, ...plain, ...output], { input: data });
}

/** A copy of a sample, shorter and of a lower rate if it may be, and compressed. */
function lighter(bank, sample, made) {
  const known = made.get(sample);
  if (known) return known;
  const { name, sampleRate, originalKey, pitchCorrection, loopStart, loopEnd } = sample;
  const loop = loopEnd - loopStart;
  const isLooped = loop > 8;
  let audio = sample.getAudioData();
  const most = isLooped ? loopEnd + 64 : Math.round(LONGEST * sampleRate);
  if (audio.length > most) {
    audio = audio.slice(0, most);
    const fade = isLooped ? 0 : Math.round(0.2 * sampleRate);
    for (let i = 0; i < fade; i++) audio[most - 1 - i] *= i / fade;
  }
  // A short loop of another length in samples would be out of tune.
  const rate = isLooped && loop < SHORT_LOOP ? sampleRate : Math.min(sampleRate, RATE);
  const at = (place) => Math.round((place * rate) / sampleRate);
  const copy = new BasicSample(name, rate, originalKey, pitchCorrection, 1, at(loopStart), at(loopEnd));
  copy.setCompressedData(new Uint8Array(encode(resample(audio, sampleRate, rate), rate)));
  bank.addSamples(copy);
  made.set(sample, copy);
  return copy;
}

/** Adds an instrument of zones that share all keys; what the presets' zones said is in them. */
function addInstrument(bank, name, zones, made, isDrum) {
  const instrument = new BasicInstrument();
  instrument.name = name;
  zones.forEach(({ outer, inner, low, key }, i) => {
    const zone = instrument.createZone(lighter(bank, inner.sample, made));
    zone.copyFrom(inner);
    const globals = [...inner.parentInstrument.globalZone.generators];
    for (const { type, value } of globals) {
      if (zone.getGenerator(type, null) === null) zone.setGenerator(type, value);
    }
    const adds = [...outer.parentPreset.globalZone.generators, ...outer.generators];
    for (const { type, value } of adds) zone.addToGenerator(type, value);
    zone.keyRange = { min: low, max: i + 1 < zones.length ? zones[i + 1].low - 1 : 127 };
    zone.velRange = { min: 0, max: 127 };
    if (isDrum && key !== undefined) zone.setGenerator(FIXED_KEY, key);
  });
  bank.addInstruments(instrument);
  return instrument;
}

function addPreset(bank, program, isDrum, instrument) {
  const preset = new BasicPreset(bank);
  preset.name = instrument.name;
  preset.program = program;
  preset.isGMGSDrum = isDrum;
  preset.createZone(instrument);
  bank.addPresets(preset);
}

/** The sounds of `SOURCE` that are kept, as a bank. */
function cut(source) {
  const bank = new BasicSoundBank();
  bank.soundBankInfo.name = 'General MIDI, cut from FluidR3Mono';
  bank.soundBankInfo.copyright = readFileSync(LICENCE, 'utf8').split('Licence:')[1].trim().slice(0, 250);
  const made = new Map();
  const patch = (program, isDrum) =>
    source.presets.find((p) => p.program === program && p.isDrum === isDrum && (isDrum || !p.bankMSB));
  for (const [program, alike] of KEPT) {
    const preset = patch(program, false);
    const instrument = addInstrument(bank, preset.name, spread(preset), made, false);
    for (const one of alike) addPreset(bank, one, false, instrument);
  }
  const kit = patch(0, true);
  addPreset(bank, 0, true, addInstrument(bank, kit.name, spreadDrums(kit), made, true));
  bank.flush();
  return { bank, samples: made.size };
}

const folder = `${web}/vendor`;
mkdirSync(folder, { recursive: true });
const source = SoundBankLoader.fromArrayBuffer(Uint8Array.from(readFileSync(SOURCE)).buffer);
await BasicSoundBank.isSF3DecoderReady;
const programs = [...KEPT.values()].flat().sort((a, b) => a - b);
if (programs.some((program, i) => program !== i) || programs.length !== 128) throw new Error('not all programs');
const { bank, samples } = cut(source);
writeFileSync(`${folder}/general-midi.sf3`, new Uint8Array(bank.writeSF2({ software: 'mt3-runtime' })));
execFileSync(esbuild, [
  '--bundle', '--minify', '--format=esm', '--target=es2022', '--legal-comments=none',
  `--outfile=${folder}/spessasynth.js`,
], { cwd: web, input: "export { WorkletSynthesizer } from 'spessasynth_lib';" }); // prettier-ignore
copyFileSync(`${modules}/spessasynth_lib/dist/spessasynth_processor.min.js`, `${folder}/spessasynth_processor.js`);
const licences = [
  ['spessasynth.js and spessasynth_processor.js: spessasynth_lib and spessasynth_core', `${modules}/spessasynth_lib/LICENSE`],
  ['general-midi.sf3: cut from FluidR3Mono_GM by scripts/vendor_web.mjs', LICENCE],
];
writeFileSync(`${folder}/LICENCES.txt`, licences.map(([what, path]) => `${what}\n\n${readFileSync(path, 'utf8')}`).join('\n\n'));
for (const name of ['spessasynth.js', 'spessasynth_processor.js', 'general-midi.sf3']) {
  const data = readFileSync(`${folder}/${name}`);
  console.log(name, data.length, createHash('sha256').update(data).digest('hex'));
}
console.log(`${samples} samples`);
