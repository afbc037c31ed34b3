// Transcribes samples in a browser with the page's engine; prints JSON: a result per recording.
//     node in_browser.mjs BROWSER MODEL WORKERS SAMPLES.f32...
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { launch } from './browsers.mjs';
import { serve } from './serve.mjs';

const [executablePath, model, workers, ...recordings] = process.argv.slice(2);
const web = fileURLToPath(new URL('../../runtime/web', import.meta.url));
const server = await serve({
  '/model/': model,
  '/ort/': `${web}/node_modules/onnxruntime-web/dist`,
  '/audio/': dirname(recordings[0]),
  '/': web,
});
const browser = await launch(executablePath);
try {
  const page = await browser.newPage();
  await page.goto(`${server.url}package.json`); // any file: modules need an origin
  for (const name of recordings.map((path) => path.slice(dirname(path).length + 1))) {
    const found = await page.evaluate(
      async ([name, wanted]) => {
        const mt3 = await import('/src/index.js');
        const { LocalEngine } = await import('/page/engine.js');
        globalThis.engine ??= new LocalEngine(new URL('/model/', location.href).href);
        globalThis.engine.wanted = wanted;
        const manifest = await globalThis.engine.load();
        const response = await fetch(`/audio/${encodeURIComponent(name)}`);
        const audio = new Float32Array(await response.arrayBuffer());
        if (!audio.length) throw new Error(`${name} is empty`);
        const started = performance.now();
        const result = await globalThis.engine.transcribe(audio, manifest, {});
        return {
          tokens: result.sequences.map(({ tokens }) => Array.from(tokens)),
          midi: Array.from(mt3.toMidi(result.notes)),
          notes: result.notes.length,
          seconds: (performance.now() - started) / 1000,
          duration: result.duration,
        };
      },
      [name, Number(workers)],
    );
    console.log(JSON.stringify({ name, ...found }));
  }
} finally {
  await browser.close();
  server.close();
}
