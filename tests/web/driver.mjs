// What tests of the page have in common: a browser, pages that watch themselves, files to open.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { launch } from './browsers.mjs';
import { serve } from './serve.mjs';

const axe = createRequire(import.meta.url).resolve(
  '../../runtime/web/node_modules/axe-core/axe.min.js',
);

/** Starts Chromium and a server of the folders; `close` ends both. */
export async function start(executablePath, folders, answer = undefined) {
  const server = await serve(folders, answer);
  const browser = await launch(executablePath);
  const close = async () => {
    await browser.close();
    server.close();
  };
  return { browser, server, close };
}

/** Prints that a check was passed. */
export const report = (name, value = true) => console.log(JSON.stringify({ [name]: value }));

/** A page that notes requests to elsewhere, and errors of its own. */
export async function fresh({ browser, server }, options = {}) {
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

/** Waits until the page says something. */
export const said = (page, what) =>
  page.waitForFunction(
    ([source]) => new RegExp(source).test(document.querySelector('#message').textContent),
    [what.source],
    { timeout: 900_000 },
  );

/** Opens a file, or several, and waits for the end. */
export async function open(page, file, done = /notes in/) {
  await page.locator('#file').setInputFiles([]);
  await page.locator('#file').setInputFiles(file);
  await said(page, done);
}

/** The content of a file that a button downloads. */
export async function downloaded(page, name) {
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name, exact: true }).click();
  return readFileSync(await (await download).path());
}

/** Fails on violations of accessibility rules, by axe-core. */
export async function checkAccessible(page) {
  await page.evaluate(readFileSync(axe, 'utf8')); // past the policy, as an extension would
  const violations = await page.evaluate(async () => {
    const { violations } = await globalThis.axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((n) => n.html).join(' | ')}`);
  });
  assert.deepEqual(violations, []);
}

/** Fails if the page scrolls sideways. */
export async function checkWidth(page) {
  const wide = await page.evaluate(() =>
    document.documentElement.scrollWidth <= document.documentElement.clientWidth
      ? null
      : Array.from(document.querySelectorAll('body *'))
          .filter((e) => !e.closest('.scroll *') && e.getBoundingClientRect().right > innerWidth)
          .map((e) => e.id || e.outerHTML.slice(0, 60)),
  );
  assert.equal(wide, null, `the page scrolls sideways: ${wide}`);
}
