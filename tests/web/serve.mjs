// Serves folders over http on 127.0.0.1 for browser tests: the first one that has a file gives it.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.css': 'text/css',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
  '.svg': 'image/svg+xml',
  '.webmanifest': 'application/manifest+json',
};

/**
 * @param {Record<string, string>} mounts folders by the beginning of the path
 * @param {(request: any, response: any) => boolean} [answer] takes requests first, if it will
 */
export async function serve(mounts, answer = () => false) {
  const server = createServer(async (request, response) => {
    if (answer(request, response)) return;
    const path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    for (const [prefix, folder] of Object.entries(mounts)) {
      if (!path.startsWith(prefix)) continue;
      const name = normalize(path.slice(prefix.length) || 'index.html');
      if (name.startsWith('..')) break;
      try {
        const data = await readFile(join(folder, name));
        const type = TYPES[extname(name)] ?? 'application/octet-stream';
        response.writeHead(200, { 'content-type': type, 'cache-control': 'no-store' });
        return response.end(data);
      } catch {
        continue;
      }
    }
    response.writeHead(404).end();
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}
