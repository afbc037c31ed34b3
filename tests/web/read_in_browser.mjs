// Reads sound files in a browser with the JavaScript runtime: node read_in_browser.mjs BROWSER OUT FILE...
// Writes OUT/NAME.f32, mono at 16 kHz, and prints how each was read.
import { writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { launch } from './browsers.mjs';
import { serve } from './serve.mjs';

const [executablePath, out, ...files] = process.argv.slice(2);
const web = fileURLToPath(new URL('../../runtime/web', import.meta.url));
const server = await serve({ '/audio/': dirname(files[0]), '/': web });
const browser = await launch(executablePath);
try {
  const page = await browser.newPage();
  await page.goto(`${server.url}package.json`); // any file: modules need an origin
  for (const name of files.map((path) => basename(path))) {
    const { text, reader } = await page.evaluate(async (name) => {
      const { readRecording } = await import('/src/index.js');
      const file = await (await fetch(`/audio/${encodeURIComponent(name)}`)).blob();
      const { samples, reader } = await readRecording(file, 16_000);
      const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
      let text = '';
      for (let at = 0; at < bytes.length; at += 8192) {
        text += String.fromCharCode(...bytes.subarray(at, at + 8192));
      }
      return { text: btoa(text), reader };
    }, name);
    writeFileSync(join(out, `${name}.f32`), Buffer.from(text, 'base64'));
    console.log(JSON.stringify({ name, reader }));
  }
} finally {
  await browser.close();
  server.close();
}
