// The page in Firefox: opens a file, edits, plays and downloads; prints a JSON line a check.
//     node firefox_page.mjs FIREFOX SITE WAV MIDI_OUT
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { launch } from './browsers.mjs';
import { serve } from './serve.mjs';

const [executablePath, site, wav, midi] = process.argv.slice(2);
const server = await serve({ '/': site });
const browser = await launch(executablePath);
const report = (name) => console.log(JSON.stringify(name));
try {
  const page = await browser.newPage();
  const faults = [];
  page.on('pageerror', (error) => faults.push(String(error)));
  await page.evaluateOnNewDocument(() => {
    const create = URL.createObjectURL.bind(URL);
    URL.createObjectURL = (blob) => {
      globalThis.lastBlob = blob; // what a button downloads
      return create(blob);
    };
  });
  await page.goto(server.url);
  const said = (what) =>
    page.waitForFunction(
      (source) => new RegExp(source).test(document.querySelector('#message').textContent),
      { timeout: 900_000, polling: 200 },
      what.source,
    );
  await (await page.$('#file')).uploadFile(wav);
  await said(/notes in|cannot|wrong/);
  const message = await page.$eval('#message', (e) => e.textContent);
  assert.match(message, /notes in/);
  await page.click('#midi');
  const bytes = await page.evaluate(async () =>
    Array.from(new Uint8Array(await globalThis.lastBlob.arrayBuffer())),
  );
  writeFileSync(midi, Uint8Array.from(bytes));
  report('midi');
  const rows = () => page.$$eval('#notes tbody tr', (all) => all.length);
  const before = await rows();
  await page.focus('#notes button[aria-label^=Delete]');
  await page.keyboard.press('Delete');
  assert.equal(await rows(), before - 1);
  await page.keyboard.press('z');
  assert.equal(await rows(), before);
  report('keyboard');
  await page.focus('#view');
  await page.keyboard.press('ArrowRight');
  const drawn = await page.$eval('#roll', (canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value) => value > 0);
  });
  assert.ok(drawn);
  assert.deepEqual(faults, []);
  report('drawn');
} finally {
  await browser.close();
  server.close();
}
