// Edits, line-ups, stems and comparison on a static site, as a person would; a JSON line a check.
//     node edits.mjs CHROMIUM SITE WAV PICTURES
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { checkAccessible, checkWidth, downloaded, fresh, open, report, said, start } from './driver.mjs';

const [executablePath, site, wav, pictures] = process.argv.slice(2);
const driver = await start(executablePath, { '/': site });
try {
  const page = await fresh(driver, { viewport: { width: 1280, height: 1400 }, colorScheme: 'light' });
  await open(page, wav);
  const notes = async () => JSON.parse(await downloaded(page, 'Download JSON')).notes;
  const button = (name) => page.getByRole('button', { name }).first();
  const first = await notes();
  assert.ok(first.length > 5);

  // One note: selected in the table, then moved, given away and deleted; all of it taken back.
  await button(/^Edit /).click();
  assert.equal(await button(/^Edit /).getAttribute('aria-pressed'), 'true');
  await page.locator('#note-onset').fill('1.25');
  await page.locator('#note-length').fill('0.5');
  await page.locator('#note-pitch').fill('200');
  await page.locator('#note-pitch').press('Enter');
  await page.locator('#note-instrument').selectOption('drums');
  const moved = (await notes()).find((note) => note.onset === 1.25 && note.offset === 1.75);
  assert.equal(moved.pitch, 127); // and no more
  assert.ok(moved.is_drum && moved.program === 0);
  await page.locator('#view').focus();
  await page.keyboard.press('ArrowDown');
  assert.equal(await page.locator('#note-pitch').inputValue(), '126');
  await page.locator('#note-delete').click();
  assert.equal((await notes()).length, first.length - 1);
  assert.ok(await page.locator('#editor').isHidden());
  for (let i = 0; i < 6; i++) await page.locator('#undo').click();
  assert.deepEqual(await notes(), first);
  assert.ok(await page.locator('#undo').isDisabled());
  await page.locator('#redo').click();
  assert.equal((await notes()).filter((note) => note.onset === 1.25).length, 1);
  await page.locator('#undo').click();
  report('one note');

  // A press on a note of the roll selects it, a drag moves it.
  const box = await page.locator('#roll').boundingBox();
  const zoom = Number(await page.locator('#zoom').inputValue());
  const place = first.find((note) => note.onset < 4 && !note.is_drum && note.offset - note.onset > 0.1);
  let at = null;
  for (let y = box.height * 0.2; y < box.height && !at; y += 2) {
    const x = box.x + (place.onset + 0.05) * zoom;
    await page.mouse.click(x, box.y + y);
    if (await page.locator('#editor').isVisible()) at = { x, y: box.y + y };
    await page.waitForTimeout(0);
  }
  const before = Number(await page.locator('#note-onset').inputValue());
  await page.mouse.move(at.x, at.y);
  await page.mouse.down();
  await page.mouse.move(at.x + 0.3 * zoom, at.y);
  await page.mouse.up();
  assert.ok(Math.abs(Number(await page.locator('#note-onset').inputValue()) - before - 0.3) < 0.02);
  await page.locator('#undo').click();
  await page.keyboard.press('Escape');
  report('roll');

  // All notes of an instrument.
  const list = page.getByRole('combobox', { name: /^Give the notes of/ }).first();
  await list.focus();
  const from = await list.inputValue();
  await list.selectOption('40');
  assert.ok((await notes()).every((note) => String(note.program) !== from || note.is_drum));
  await page.getByRole('cell', { name: 'Violin' }).first().waitFor();
  await page.locator('#undo').click();
  assert.deepEqual(await notes(), first);
  report('instrument');

  // Notes that sound are marked while it plays.
  await page.locator('#view').focus();
  await page.keyboard.press('Home');
  await page.keyboard.press('Space');
  await page.locator('tr.sounding').first().waitFor();
  await page.keyboard.press('Space');
  report('sounding');

  // General MIDI sounds: something is heard of an instrument, of drums, and nothing after a pause.
  const peaks = await page.evaluate(async () => {
    const { Sounds } = await import(new URL('page/sounds.js', location.href).href);
    const context = new AudioContext();
    await context.resume();
    const sounds = new Sounds();
    await sounds.load(context);
    const analyser = new AnalyserNode(context, { fftSize: 2048 });
    analyser.connect(context.destination);
    sounds.connect(analyser);
    const data = new Float32Array(2048);
    const peak = async (note) => {
      const whole = { onset: 0, offset: 0.4, velocity: 100, ...note };
      if (note) sounds.play(whole, context.currentTime + 0.05);
      let most = 0;
      for (let i = 0; i < 12; i++) {
        await new Promise((resolve) => setTimeout(resolve, 40));
        analyser.getFloatTimeDomainData(data);
        most = Math.max(most, ...data.map(Math.abs));
      }
      sounds.stop();
      if (note) sounds.connect(analyser);
      return most;
    };
    const found = [];
    for (let program = 0; program < 128; program += 8) {
      found.push(await peak({ program, pitch: 60, isDrum: false }));
    }
    found.push(await peak({ program: 0, pitch: 38, isDrum: true }));
    sounds.stop();
    return { found, silence: await peak(null) };
  });
  assert.ok(peaks.found.every((peak) => peak > 0.005), peaks.found.join());
  assert.ok(peaks.silence < 0.001, String(peaks.silence));
  report('sounds');

  // Stems: an archive of MIDI files, which together hold all notes.
  const archive = await downloaded(page, 'Download stems');
  assert.equal(archive.readUInt32LE(0), 0x04034b50);
  const names = [...archive.toString('latin1').matchAll(/PK\x01\x02.{42}([a-z_]+\.mid)/gs)];
  assert.ok(names.length > 0);
  report('stems', [archive.toString('base64')]);

  // A second result: the first is kept, fewer instruments may occur in the second.
  await page.locator('#compare summary').click();
  await page.locator('#keep').click();
  await page.locator('#settings summary').click();
  await page.locator('#families-none').click();
  await page.locator('#again').click();
  await said(page, /No instrument is chosen/);
  await page.getByRole('checkbox', { name: 'Drums', exact: true }).check();
  await page.locator('#again').click();
  await said(page, /notes in/);
  const drums = await notes();
  assert.ok(drums.length && drums.every((note) => note.is_drum));
  const text = await page.locator('#compared').textContent();
  assert.match(text, new RegExp(`Second: .*, ${first.length} notes. ${drums.length} are the same`));
  assert.match(text, / 0 only in the first/);
  await page.locator('#view').focus();
  await page.keyboard.press('c');
  assert.equal(await page.locator('#hear-other').getAttribute('aria-pressed'), 'true');
  await page.keyboard.press('c');
  await page.locator('#families-all').click();
  await page.locator('#settings summary').click();
  await checkAccessible(page);
  await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${pictures}/page-comparing.png` });
  const json = { name: 'other.json', mimeType: 'application/json' };
  await page.locator('#other-file').setInputFiles({ ...json, buffer: Buffer.from('{"notes": 1}') });
  await said(page, /no file of notes/);
  const one = { format: 'mt3-runtime.notes', version: 1, model: 'other', notes: first.slice(0, 3) };
  await page.locator('#other-file').setInputFiles({ ...json, buffer: Buffer.from(JSON.stringify(one)) });
  await said(page, /3 notes of other\.json to compare/);
  await page.emulateMedia({ colorScheme: 'dark' });
  await checkAccessible(page);
  await page.setViewportSize({ width: 320, height: 900 });
  await checkWidth(page);
  await page.screenshot({ path: `${pictures}/page-comparing-phone.png`, fullPage: true });
  await page.locator('#stop-comparing').click();
  assert.ok(await page.locator('#view-other').isHidden());
  report('comparison');

  // Several files are stems, of the instruments that their names tell.
  const sound = readFileSync(wav);
  const file = (name) => ({ name, mimeType: 'audio/wav', buffer: sound });
  await open(page, [file('song drums.wav'), file('song guitar.wav')]);
  const both = await notes();
  const kinds = new Set(both.map((note) => (note.is_drum ? 'drums' : note.program >> 3)));
  assert.ok([...kinds].every((kind) => kind === 'drums' || kind === 3), [...kinds].join());
  assert.ok(both.length >= drums.length);
  report('several files');
  assert.deepEqual(page.faults, []);
  assert.deepEqual(page.outside, []);
} finally {
  await driver.close();
}
