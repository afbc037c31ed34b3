// Drives the page beside a server that answers as `mt3 serve` is documented to; a JSON line a check.
//     node server_page.mjs CHROMIUM PAGE WAV
import assert from 'node:assert/strict';
import { launch } from './browsers.mjs';
import { serve } from './serve.mjs';

const [executablePath, folder, wav] = process.argv.slice(2);
const head = { onset: 0.5, offset: 1, pitch: 60, velocity: 127, program: 0, is_drum: false };
const probabilities = { onset: 0.9, pitch: 0.9, program: 0.9, offset: null };
const change = { offset: 2.5, pitch: 50, program: 33, confidence: 0.4 };
const EVENTS = [
  { type: 'note_on', number: 0, time: 0.5, pitch: 60, velocity: 127, program: 0, is_drum: false },
  { type: 'note_off', number: 0, time: 1, kept: true },
  { type: 'progress', seconds_done: 2, seconds_total: 4, notes: 1 },
  {
    type: 'done',
    token_digest: '',
    warnings: ['a warning of the server'],
    result: {
      model: 'default',
      duration: 4,
      warnings: ['a warning of the server'],
      notes: [
        { ...head, instrument: 'Acoustic Grand Piano', confidence: 0.8, probabilities },
        { ...head, onset: 2, offset: 2.01, pitch: 38, is_drum: true, confidence: 0.5, probabilities },
      ],
      leakage: {
        filter: 'auto',
        notes: 3,
        changes: [
          { ...change, onset: 1.5, became: null, reason: 'no melody here' },
          { ...change, onset: 2, became: { pitch: 38, program: 0, is_drum: true }, reason: 'a drum' },
        ],
      },
    },
  },
];
let mood = 'busy';
let asked = 0;
let received = 0;
let query = new URLSearchParams();

/** Answers for the service. */
function answer(request, response) {
  if (request.url === '/v1/models') {
    response.writeHead(200, { 'content-type': 'application/json' }).end(
      '{"default": "default", "models": [{"name": "other"}, {"name": "default"}]}',
    );
    return true;
  }
  if (!request.url.startsWith('/v1/transcriptions')) return false;
  query = new URL(request.url, server.url).searchParams;
  asked++;
  request.on('data', (part) => (received += part.length));
  request.on('end', () => {
    if (mood === 'busy' && asked === 1) {
      response.writeHead(503, { 'retry-after': '1' }).end('{"message": "no room"}');
    } else if (mood === 'gone') {
      response.destroy();
    } else if (mood === 'refuses') {
      response.writeHead(422, {}).end('{"type": "option", "message": "no such model"}');
    } else {
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      const events = mood === 'dies' ? EVENTS.slice(0, 3) : EVENTS;
      for (const event of events) response.write(`${JSON.stringify(event)}\n`);
      if (mood === 'dies') setTimeout(() => response.destroy(), 500);
      else response.end();
    }
  });
  return true;
}

const server = await serve({ '/': folder }, answer);
const browser = await launch(executablePath);
const report = (name) => console.log(JSON.stringify(name));
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  await page.goto(server.url);
  await page.getByText(/transcribed by the server/).waitFor();
  const open = async (expected) => {
    await page.locator('#file').setInputFiles([]);
    await page.locator('#file').setInputFiles(wav);
    await page.waitForFunction(
      ([source]) => new RegExp(source).test(document.querySelector('#message').textContent),
      [expected.source],
    );
    assert.ok(await page.locator('#file').isEnabled());
  };
  await open(/2 notes in 4\.0 seconds of music\. a warning of the server/);
  assert.equal(asked, 2); // it was busy once
  assert.ok(received > 1000);
  assert.equal(await page.locator('#instruments tbody tr').count(), 2);
  assert.equal(query.toString(), 'model=default');
  assert.match(await page.locator('#notes tbody').textContent(), /C4.*Acoustic Grand Piano.*80 %/);
  report('notes');

  const changes = page.locator('#changes tbody tr');
  const instruments = () => page.locator('#instruments tbody').textContent();
  assert.deepEqual(await changes.count(), 2);
  assert.match(await changes.first().textContent(), /1\.50 s.*D3.*removed.*no melody here/);
  assert.doesNotMatch(await instruments(), /Electric Bass/);
  await changes.first().getByRole('button').click();
  assert.match(await instruments(), /Electric Bass \(finger\)1/);
  await page.locator('#undo').click();
  assert.doesNotMatch(await instruments(), /Electric Bass/);
  await page.locator('#changes-all').click();
  assert.match(await instruments(), /Electric Bass \(finger\)2/);
  assert.doesNotMatch(await instruments(), /Drums/); // one of them had become a drum
  await changes.nth(1).getByRole('button').click();
  assert.match(await instruments(), /Drums1/);
  report('leakage');

  await page.locator('#settings summary').click();
  await page.locator('#model').selectOption('other');
  await page.locator('#filter').selectOption('off');
  await page.getByRole('checkbox', { name: 'Guitar' }).uncheck();
  await page.locator('#again').click();
  await page.waitForFunction(() => /notes in/.test(document.querySelector('#message').textContent));
  assert.equal(query.get('model'), 'other');
  assert.equal(query.get('auto_filter'), 'off');
  const lineup = query.get('instruments').split(',');
  assert.ok(lineup.includes('drums') && lineup.includes('23') && lineup.includes('32'));
  assert.ok(!lineup.includes('24') && !lineup.includes('31'));
  report('settings');
  mood = 'refuses';
  await open(/refused the file: no such model/);
  mood = 'dies';
  await open(/ended in the middle/);
  mood = 'gone';
  await open(/cannot be reached/);
  report('bad answers');
} finally {
  await browser.close();
  server.close();
}
