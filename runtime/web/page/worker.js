/**
 * Decodes segments on a thread of its own, with one session of one thread: workers need no headers,
 * and segments are independent.
 */
import { completeGraph, parseManifest, SegmentDecoder } from '../src/index.js';

/** @typedef {{load?: string, id?: number, segments?: import('../src/segments.js').Segment[]}} Request */

/** @type {SegmentDecoder | undefined} */
let decoder;

/** @param {string} model address of the model's folder, with a slash */
async function load(model) {
  const folder = new URL('../ort/', import.meta.url).href;
  const ort = await import(`${folder}ort.wasm.min.mjs`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = folder;
  const text = async (/** @type {string} */ name) => fetched(new URL(name, model)).then((r) => r.text());
  const manifest = parseManifest(await text('bundle.json'));
  const { file, sha256 } = completeGraph(manifest);
  const graph = await (await fetched(new URL(file, model))).arrayBuffer();
  await checkDigest(graph, sha256, file);
  decoder = await SegmentDecoder.load(ort, manifest, new Uint8Array(graph));
  return manifest;
}

/** @param {URL} address */
async function fetched(address) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new Error('The model could not be fetched: the network is gone. Load the page again.');
  }
  if (!response.ok) {
    throw new Error(`${address.pathname} is not there (${response.status}). Build the site again.`);
  }
  return response;
}

/**
 * @param {ArrayBuffer} data
 * @param {string} expected
 * @param {string} file
 */
async function checkDigest(data, expected, file) {
  if (!globalThis.crypto?.subtle) return; // pages that come over plain http from elsewhere have none
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (found !== expected) {
    throw new Error(`${file} is damaged, or of another version. Load the page again, or build it.`);
  }
}

globalThis.addEventListener('message', async ({ data }) => {
  /** @type {Request} */
  const request = data;
  try {
    if (request.load !== undefined) {
      postMessage({ manifest: await load(request.load) });
    } else if (decoder && request.segments) {
      postMessage({ id: request.id, sequences: await decoder.decode(request.segments) });
    }
  } catch (error) {
    postMessage({ id: request.id, error: error instanceof Error ? error.message : String(error) });
  }
});
