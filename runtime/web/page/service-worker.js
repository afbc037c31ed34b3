/**
 * Keeps all files of a static site, so that it works without the network.  `mt3 web build` puts the
 * list of files and their digest in front of this.
 */
/** @type {{version: string, files: string[]}} */
const SITE = /** @type {any} */ (globalThis).mt3Site;
const worker = /** @type {any} */ (globalThis);

worker.addEventListener('install', (/** @type {any} */ event) => {
  event.waitUntil(caches.open(SITE.version).then((cache) => cache.addAll(SITE.files)));
});

worker.addEventListener('activate', (/** @type {any} */ event) => {
  const old = async () => {
    for (const name of await caches.keys()) if (name !== SITE.version) await caches.delete(name);
  };
  event.waitUntil(old());
});

worker.addEventListener('fetch', (/** @type {any} */ event) => {
  const found = caches.match(event.request, { ignoreSearch: true });
  event.respondWith(found.then((response) => response ?? fetch(event.request)));
});
