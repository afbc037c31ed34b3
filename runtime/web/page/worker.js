/**
 * Decodes segments on a thread of its own, with one session of one thread: workers need no headers,
 * and segments are independent.
 */
import { CheckedDecoder, completeGraph, parseManifest, SegmentDecoder } from '../src/index.js';

/**
 * @typedef {{load?: string, gpu?: boolean, id?: number,
 *   segments?: import('../src/segments.js').Segment[]}} Request
 */

/** @type {SegmentDecoder | CheckedDecoder | undefined} */
let decoder;

/**
 * @param {string} model address of the model's folder, with a slash
 * @param {boolean} gpu whether WebGPU is wanted
 */
async function load(model, gpu) {
  const folder = new URL('../ort/', import.meta.url).href;
  const ort = await import(`${folder}${gpu ? 'ort.webgpu.min.mjs' : 'ort.wasm.min.mjs'}`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = folder;
  const text = async (/** @type {string} */ name) => fetched(new URL(name, model)).then((r) => r.text());
  const manifest = parseManifest(await text('bundle.json'));
  const { file, sha256 } = completeGraph(manifest);
  const graph = await (await fetched(new URL(file, model))).arrayBuffer();
  await checkDigest(graph, sha256, file);
  const sure = await SegmentDecoder.load(ort, manifest, new Uint8Array(graph));
  decoder = gpu ? await beside(sure, ort, manifest, new Uint8Array(graph)) : sure;
  return manifest;
}

/**
 * The graphics processor beside the processor; the latter alone if there is none.
 * @param {SegmentDecoder} sure
 * @param {import('../src/decoder.js').Ort} ort
 * @param {import('../src/manifest.js').Manifest} manifest
 * @param {Uint8Array} graph
 */
async function beside(sure, ort, manifest, graph) {
  const tell = (/** @type {string} */ remark) => postMessage({ remark });
  try {
    return new CheckedDecoder(await SegmentDecoder.load(ort, manifest, graph, 'webgpu'), sure, tell);
  } catch (error) {
    tell(`the graphics processor could not be used (${error})`);
    return sure;
  }
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
      postMessage({ manifest: await load(request.load, request.gpu ?? false) });
    } else if (decoder && request.segments) {
      postMessage({ id: request.id, sequences: await decoder.decode(request.segments) });
    }
  } catch (error) {
    postMessage({ id: request.id, error: error instanceof Error ? error.message : String(error) });
  }
});
