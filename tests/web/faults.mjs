// What can go wrong around the page: a sentence that says what to do, and the page stays usable.
//     node faults.mjs CHROMIUM SITE WAV FOLDER
import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { fresh, open, report, said, start } from './driver.mjs';

const [executablePath, site, wav, folder] = process.argv.slice(2);
const driver = await start(executablePath, { '/': site });
const { browser, server } = driver;
const isIdle = async (page) => {
  assert.ok(await page.locator('#progress').isHidden());
  assert.ok(await page.locator('#file').isEnabled());
};

/** A page that lacks something from the beginning. */
async function lacking(script) {
  const page = await (await browser.newContext()).newPage();
  await page.addInitScript(script);
  await page.goto(server.url);
  return page;
}

try {
  // The model: not there, gone, damaged, of another version; then all is well again.
  const page = await fresh(driver, { serviceWorkers: 'block' }); // it would have the model
  assert.equal(await page.evaluate(() => typeof SharedArrayBuffer), 'undefined');
  const model = async (pattern, act, expected) => {
    await page.route(pattern, act);
    await open(page, wav, expected);
    await isIdle(page);
    await page.unroute(pattern);
  };
  await model('**/model/*.onnx', (route) => route.fulfill({ status: 404 }), /is not there \(404\)/);
  await model('**/model/*.onnx', (route) => route.abort(), /the network is gone/);
  const damaged = async (route) => {
    const body = await (await route.fetch()).body();
    body[body.length >> 1] ^= 1;
    await route.fulfill({ body });
  };
  await model('**/model/*.onnx', damaged, /is damaged, or of another version/);
  const older = async (route) => {
    const text = await (await route.fetch()).text();
    await route.fulfill({ body: text.replace(/"version": ?1/, '"version":9') });
  };
  await model('**/model/bundle.json', older, /Use the page and the model of one version/);
  report('model');

  // Files that are too large, too long, or of a kind that browsers do not read.
  const huge = `${folder}/huge.wav`;
  writeFileSync(huge, readFileSync(wav).subarray(0, 44));
  truncateSync(huge, 2 ** 30 + 1000);
  await open(page, huge, /larger than 1 GB/);
  const header = readFileSync(wav).subarray(0, 44);
  header.writeUInt32LE(8000, 24);
  header.writeUInt32LE(3 * 3600 * 16_000, 40);
  writeFileSync(huge, header);
  truncateSync(huge, 44 + 3 * 3600 * 16_000);
  await open(page, huge, /180 minutes long/);
  const aiff = Buffer.concat([Buffer.from('FORM\0\0\0\x2eAIFFCOMM\0\0\0\x12'), Buffer.alloc(40)]);
  await open(page, { name: 'x.aiff', mimeType: 'audio/aiff', buffer: aiff }, /Convert it to WAV/);
  await isIdle(page);
  await page.locator('#record').click();
  await said(page, /microphone was refused|lets no page record/);
  report('files');

  // Stopped, then frozen as a tab in the background is, then to the end.
  await page.locator('#file').setInputFiles([]);
  await page.locator('#file').setInputFiles(wav);
  await said(page, /Transcribing/);
  await page.locator('#cancel').click();
  await said(page, /Stopped: \d+ notes so far/);
  await page.locator('#progress').waitFor({ state: 'hidden' });
  await page.locator('#file').setInputFiles([]);
  await page.locator('#file').setInputFiles(wav);
  await said(page, /Transcribing/);
  const session = await page.context().newCDPSession(page);
  await session.send('Page.setWebLifecycleState', { state: 'frozen' });
  await new Promise((resolve) => setTimeout(resolve, 1500));
  await session.send('Page.setWebLifecycleState', { state: 'active' });
  await said(page, /notes in/);
  await isIdle(page);
  report('stopped');

  // A reload in the middle is asked about; afterwards the page begins anew.
  const asked = [];
  page.on('dialog', (dialog) => {
    asked.push(dialog.type());
    dialog.accept();
  });
  await page.locator('#file').setInputFiles([]);
  await page.locator('#file').setInputFiles(wav);
  await said(page, /Transcribing/);
  await page.reload();
  assert.deepEqual(asked, ['beforeunload']);
  await said(page, /Choose a recording/);
  report('reload');

  // Browsers that lack something.
  const old = await lacking(() => (WebAssembly.validate = () => false));
  await open(old, wav, /no WebAssembly with SIMD/);
  const quiet = await lacking(() => Reflect.deleteProperty(BaseAudioContext.prototype, 'audioWorklet'));
  await open(quiet, wav);
  await quiet.locator('#play').click();
  await said(quiet, /notes are plain tones/);
  await quiet.waitForFunction(() => document.querySelector('#play').textContent === 'Pause');
  report('lacking');

  // No room for the files of the site.
  const full = await (await browser.newContext()).newPage();
  const quota = await full.context().newCDPSession(full);
  const origin = server.url.replace(/\/$/, '');
  await quota.send('Storage.overrideQuotaForOrigin', { origin, quotaSize: 100_000 });
  await full.goto(server.url);
  await full.getByText(/no room to keep this page/).waitFor();
  await open(full, wav);
  report('storage');
} finally {
  await driver.close();
}
