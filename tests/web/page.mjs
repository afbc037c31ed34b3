// Drives a static site of the page in Chromium as a person would; prints a JSON object per check.
//     node page.mjs CHROMIUM SITE WAV MIDI_OUT PICTURES
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { checkAccessible, checkWidth, downloaded, fresh, open, report, said, start } from './driver.mjs';

const [executablePath, site, wav, midi, pictures] = process.argv.slice(2);
const driver = await start(executablePath, { '/': site });

try {
  const page = await fresh(driver, { viewport: { width: 1280, height: 1000 }, colorScheme: 'light' });
  await checkAccessible(page);
  await page.locator('#file').setInputFiles(wav);
  await said(page, /Transcribing|notes in/);
  await page.screenshot({ path: `${pictures}/page-transcribing.png` });
  await said(page, /notes in/);
  report('message', await page.locator('#message').textContent());
  writeFileSync(midi, await downloaded(page, 'Download MIDI'));
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

  await checkAccessible(page);
  await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${pictures}/page-light.png` });
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.waitForTimeout(200);
  await checkAccessible(page);
  await page.screenshot({ path: `${pictures}/page-dark.png` });
  for (const width of [375, 320]) {
    await page.setViewportSize({ width, height: 800 });
    await checkWidth(page);
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
  await again.goto(driver.server.url);
  assert.equal(await again.locator('h1').textContent(), 'Music to notes');
  await context.setOffline(false);
  report('offline');
} finally {
  await driver.close();
}
