// A whole model as one graph in Node: samples in, tokens and notes out.
//
//     mt3 export default --single-file -o model
//     npm install onnxruntime-web            (or onnxruntime-node, which is faster)
//     node examples/one_graph.mjs model song.wav [song.mid]      (16 kHz, mono, 16 bits)
//
// Prints the tokens of each segment, and writes the notes as a MIDI file.
import { createRequire } from 'node:module';
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import {
  completeGraph,
  parseManifest,
  SegmentDecoder,
  toMidi,
  transcribe,
} from '../runtime/web/src/index.js'; // from the package: 'mt3-runtime-web'

const [folder, song, midi] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${process.env.NODE_MODULES ?? process.cwd()}/`));
const ort = require('onnxruntime-web');
ort.env.wasm.numThreads = 1;

/** Samples of a mono file of 16 bits, whose header is 44 bytes long. */
function readWave(path) {
  const bytes = readFileSync(path);
  const samples = new Float32Array((bytes.length - 44) / 2);
  for (let i = 0; i < samples.length; i++) samples[i] = bytes.readInt16LE(44 + 2 * i) / 32768;
  return samples;
}

const manifest = parseManifest(readFileSync(`${folder}/bundle.json`, 'utf8'));
const graph = readFileSync(`${folder}/${completeGraph(manifest).file}`);
const decoder = await SegmentDecoder.load(ort, manifest, graph);
const result = await transcribe(readWave(song), manifest, [(rows) => decoder.decode(rows)]);
for (const { tokens } of result.sequences) console.log(tokens.join(' '));
if (midi) writeFileSync(midi, toMidi(result.notes));
