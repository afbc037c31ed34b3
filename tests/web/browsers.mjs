// Starts a browser by its path: Chromium through Playwright, Firefox through Puppeteer, since
// Playwright drives a Firefox of its own only.  Both give pages with goto and evaluate.
import { chromium } from '../../runtime/web/node_modules/playwright-core/index.mjs';

export async function launch(executablePath) {
  if (!/firefox/.test(executablePath)) {
    const args = ['--no-sandbox', '--autoplay-policy=no-user-gesture-required'];
    return chromium.launch({ executablePath, args });
  }
  const { launch } = await import(
    '../../runtime/web/node_modules/puppeteer-core/lib/puppeteer/puppeteer-core.js'
  );
  // A recording takes minutes on a busy machine; the protocol gives up after three by default.
  return launch({ browser: 'firefox', executablePath, headless: true, protocolTimeout: 3_600_000 });
}
