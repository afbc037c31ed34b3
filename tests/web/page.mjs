// Drives a static site of the page in Chromium as a person would; prints a JSON object per check.
//     node page.mjs CHROMIUM SITE WAV MIDI_OUT PICTURES
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { readFileSync, writeFileSync } from 'node:fs';
import { chromium } from '../../runtime/web/node_modules/playwright-core/index.mjs';
import { serve } from './serve.mjs';

const [executablePath, site, wav, midi, pictures] = process.argv.slice(2);
const axe = createRequire(import.meta.url).resolve(
  '../../runtime/web/node_modules/axe-core/axe.min.js',
);
const server = await serve({ '/': site });
const args = ['--no-sandbox', '--autoplay-policy=no-user-gesture-required'];
const browser = await chromium.launch({ executablePath, args });
const report = (name, value = true) => console.log(JSON.stringify({ [name]: value }));

/** A page that fails on requests to elsewhere, and on errors of its own. */
async function fresh(options = {}) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  context.setDefaultTimeout(120_000);
  const page = await context.newPage();
  page.outside = [];
  page.faults = [];
  page.on('request', (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(server.url)) {
      page.outside.push(request.url());
    }
  });
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error') page.faults.push(message.text());
  });
  await page.goto(server.url);
  return page;
}

const message = (page) => page.locator('#message');

/** Opens a file and waits for the end. */
async function open(page, file, done = /notes in/) {
  await page.locator('#file').setInputFiles(file);
  await page.waitForFunction(
    ([source]) => new RegExp(source).test(document.querySelector('#message').textContent),
    [done.source],
    { timeout: 900_000 },
  );
}

/** Violations of accessibility rules, by axe-core. */
async function violations(page) {
  await page.evaluate(readFileSync(axe, 'utf8')); // past the policy, as an extension would
  return page.evaluate(async () => {
    const { violations } = await globalThis.axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((n) => n.html).join(' | ')}`);
  });
}

const fits = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth <= document.documentElement.clientWidth);

try {
  const page = await fresh({ viewport: { width: 1280, height: 1000 }, colorScheme: 'light' });
  assert.deepEqual(await violations(page), []);
  await page.locator('#file').setInputFiles(wav);
  await page.waitForFunction(() => /Segment \d/.test(document.querySelector('#message').textContent), null, {
    timeout: 900_000,
  });
  await page.screenshot({ path: `${pictures}/page-transcribing.png` });
  await open(page, wav);
  report('message', await message(page).textContent());
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Download MIDI' }).click();
  writeFileSync(midi, readFileSync(await (await download).path()));
  report('midi');

  const instruments = await page.locator('#instruments tbody tr').count();
  assert.ok(instruments > 1);
  await page.getByRole('button', { name: /^Mute / }).first().focus();
  await page.keyboard.press('m');
  const pressed = () => page.getByRole('button', { name: /^Mute / }).first().getAttribute('aria-pressed');
  assert.equal(await pressed(), 'true');
  await page.keyboard.press('m');
  assert.equal(await pressed(), 'false');
  const rows = () => page.locator('#notes tbody tr').count();
  const before = await rows();
  await page.getByRole('button', { name: /^Delete / }).first().focus();
  await page.keyboard.press('Delete');
  assert.equal(await rows(), before - 1);
  await page.locator('#view').focus();
  await page.keyboard.press('z');
  assert.equal(await rows(), before);
  report('keyboard');

  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('Space');
  await page.waitForFunction(() => document.querySelector('#play').textContent === 'Pause');
  await page.waitForTimeout(600);
  await page.keyboard.press('Space');
  await page.waitForFunction(() => document.querySelector('#play').textContent === 'Play');
  report('playback');

  assert.deepEqual(await violations(page), []);
  await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${pictures}/page-light.png` });
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.waitForTimeout(200);
  assert.deepEqual(await violations(page), []);
  await page.screenshot({ path: `${pictures}/page-dark.png` });
  for (const width of [375, 320]) {
    await page.setViewportSize({ width, height: 800 });
    const wide = await page.evaluate(() =>
      Array.from(document.querySelectorAll('body *'))
        .filter((e) => !e.closest('.scroll *') && e.getBoundingClientRect().right > innerWidth)
        .map((e) => e.id || e.outerHTML.slice(0, 60)),
    );
    assert.ok(await fits(page), `the page scrolls sideways at ${width} pixels: ${wide}`);
    if (width === 375) await page.screenshot({ path: `${pictures}/page-phone.png` });
  }
  report('accessible');

  const bad = async (name, mimeType, buffer, expected) => {
    await open(page, { name, mimeType, buffer }, expected);
    assert.ok(await page.locator('#file').isEnabled());
  };
  await bad('empty.wav', 'audio/wav', Buffer.alloc(0), /file is empty/);
  await bad('text.mp3', 'audio/mpeg', Buffer.from('no music at all'), /cannot read the file/);
  const header = readFileSync(wav).subarray(0, 44);
  await bad('nothing.wav', 'audio/wav', header, /has no samples/);
  const float = Buffer.alloc(44 + 4000);
  header.copy(float);
  float.writeUInt16LE(3, 20);
  float.writeUInt16LE(32, 34);
  float.writeUInt32LE(4000, 40);
  float.writeFloatLE(NaN, 400);
  await bad('nan.wav', 'audio/wav', float, /NaN or infinite/);
  const wide = Buffer.alloc(44 + 8 * 2 * 96_000);
  header.copy(wide);
  wide.writeUInt16LE(8, 22);
  wide.writeUInt32LE(96_000, 24);
  wide.writeUInt32LE(wide.length - 44, 40);
  await bad('eight channels.wav', 'audio/wav', wide, /notes in 1\.0 seconds/);
  report('bad input');
  assert.deepEqual(page.faults, []);
  assert.deepEqual(page.outside, []);

  // The second visit needs no network.
  const context = page.context();
  await page.evaluate(async () => (await navigator.serviceWorker.ready).active !== null);
  await context.setOffline(true);
  const again = await context.newPage();
  await again.goto(server.url);
  assert.equal(await again.locator('h1').textContent(), 'Music to notes');
  await context.setOffline(false);
  report('offline');
} finally {
  await browser.close();
  server.close();
}
