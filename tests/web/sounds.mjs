// Looks into the General MIDI sounds of the page: every program and key of drums has a sound.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { BasicSoundBank, SoundBankLoader } from '../../runtime/web/node_modules/spessasynth_core/dist/index.js';

const path = new URL('../../runtime/web/vendor/general-midi.sf3', import.meta.url);
const bank = SoundBankLoader.fromArrayBuffer(Uint8Array.from(readFileSync(path)).buffer);
await BasicSoundBank.isSF3DecoderReady;
const melodic = new Map(bank.presets.filter((p) => !p.isDrum).map((p) => [p.program, p]));
assert.equal(melodic.size, 128);
const kit = bank.presets.find((p) => p.isDrum);
for (let key = 24; key < 108; key++) {
  for (const preset of [...melodic.values(), kit]) {
    const [voice] = preset.getVoiceParameters(key, 100);
    assert.ok(voice, `${preset.name} has nothing at ${key}`);
  }
}
const heard = bank.samples.map((sample) => sample.getAudioData().reduce((a, b) => Math.max(a, Math.abs(b)), 0));
assert.ok(heard.every((peak) => peak > 0.02), heard.join());
console.log(`${melodic.size} programs, ${bank.samples.length} samples`);
