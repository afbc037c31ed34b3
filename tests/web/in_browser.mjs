// Transcribes samples in Chromium with the JavaScript runtime; prints JSON: a result per recording.
//     node in_browser.mjs CHROMIUM MODEL WORKERS SAMPLES.f32...
import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from '../../runtime/web/node_modules/playwright-core/index.mjs';
import { serve } from './serve.mjs';

const [executablePath, model, ...recordings] = process.argv.slice(2);
const web = fileURLToPath(new URL('../../runtime/web', import.meta.url));
const server = await serve({
  '/model/': model,
  '/ort/': `${web}/node_modules/onnxruntime-web/dist`,
  '/audio/': dirname(recordings[0]),
  '/': web,
});
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
try {
  const page = await browser.newPage();
  await page.goto(`${server.url}package.json`); // any file: modules need an origin
  const names = recordings.map((path) => path.slice(dirname(path).length + 1));
  for (const [i, name] of names.entries()) {
    if (readFileSync(recordings[i]).length === 0) throw new Error(`${name} is empty`);
    const found = await page.evaluate(async (name) => {
      const mt3 = await import('/src/index.js');
      const ort = await import('/ort/ort.wasm.min.mjs');
      ort.env.wasm.numThreads = 1;
      const get = async (path) => (await fetch(path)).arrayBuffer();
      if (!globalThis.decoder) {
        const manifest = mt3.parseManifest(await (await fetch('/model/bundle.json')).text());
        const graph = new Uint8Array(await get(`/model/${mt3.completeGraph(manifest).file}`));
        globalThis.decoder = await mt3.SegmentDecoder.load(ort, manifest, graph);
      }
      const { manifest } = globalThis.decoder;
      const audio = new Float32Array(await get(`/audio/${name}`));
      const started = performance.now();
      const result = await mt3.transcribe(audio, manifest, [(s) => globalThis.decoder.decode(s)]);
      return {
        tokens: result.sequences.map(({ tokens }) => Array.from(tokens)),
        midi: Array.from(mt3.toMidi(result.notes)),
        notes: result.notes.length,
        seconds: (performance.now() - started) / 1000,
        duration: result.duration,
      };
    }, name);
    console.log(JSON.stringify({ name, ...found }));
  }
} finally {
  await browser.close();
  server.close();
}
