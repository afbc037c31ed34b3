// Reads WAV files and resamples them: node reading.mjs RATE OUT WAV... ; writes OUT/NAME.f32
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { mixDown, rateOf, readWav, resample } from '../../runtime/web/src/index.js';

const [rate, out, ...files] = process.argv.slice(2);
for (const file of files) {
  const bytes = new Uint8Array(readFileSync(file));
  const sound = readWav(bytes.buffer);
  if (!sound) {
    console.log(`${basename(file)} ${rateOf(bytes)}`);
    continue;
  }
  const samples = resample(mixDown(sound.channels), sound.rate, Number(rate) || sound.rate);
  writeFileSync(join(out, `${basename(file)}.f32`), samples);
  console.log(`${basename(file)} ${sound.rate}`);
}
