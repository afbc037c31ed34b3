// Records a scale with a browser's MediaRecorder and sends it live, as a page would; prints what was
// sent (base64) and what came.
//     node record.mjs CHROMIUM URL SECONDS
import { chromium } from '../../runtime/web/node_modules/playwright-core/index.mjs';

const [executablePath, url, seconds] = process.argv.slice(2);
const args = ['--no-sandbox', '--autoplay-policy=no-user-gesture-required'];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
await page.goto(url);
const found = await page.evaluate(async (length) => {
  const context = new AudioContext();
  await context.resume();
  const out = context.createMediaStreamDestination();
  out.channelCount = 1;
  const level = context.createGain();
  level.gain.value = 0.3;
  level.connect(out);
  for (let note = 0; note < length * 2; note += 1) {
    const tone = context.createOscillator();
    tone.type = 'triangle';
    tone.frequency.value = 440 * 2 ** (([0, 2, 4, 5, 7, 9, 11, 12][note % 8] - 9) / 12);
    tone.connect(level);
    tone.start(context.currentTime + note * 0.5);
    tone.stop(context.currentTime + note * 0.5 + 0.45);
  }
  const mimeType = 'audio/webm;codecs=opus';
  const recorder = new MediaRecorder(out.stream, { mimeType, audioBitsPerSecond: 32000 });
  const socket = new WebSocket(`${location.origin.replace('http', 'ws')}/v1/live`);
  const told = [];
  const sent = [];
  const closed = new Promise((resolve) => socket.addEventListener('close', resolve));
  const ready = new Promise((resolve) =>
    socket.addEventListener('message', ({ data }) => resolve(told.push(JSON.parse(data)))),
  );
  socket.addEventListener('open', () =>
    socket.send(JSON.stringify({ type: 'start', format: 'webm' })),
  );
  await ready;
  const stopped = new Promise((resolve) => recorder.addEventListener('stop', resolve));
  recorder.addEventListener('dataavailable', ({ data }) => {
    sent.push(data);
    socket.send(data);
  });
  recorder.start(250);
  setTimeout(() => recorder.stop(), length * 1000);
  await stopped;
  socket.send(JSON.stringify({ type: 'end' }));
  await closed;
  const base64 = async (blob) => {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    return btoa(String.fromCharCode(...bytes));
  };
  return { sent: await Promise.all(sent.map(base64)), told };
}, Number(seconds));
console.log(JSON.stringify(found));
await browser.close();
