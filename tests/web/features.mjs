// Prints the features of segments of float32 samples: node features.mjs MANIFEST SAMPLES OUT
import { readFileSync, writeFileSync } from 'node:fs';
import { countSegments, FeatureExtractor, segmentAt } from '../../runtime/web/src/index.js';

const [path, samples, out] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(path, 'utf8'));
const audio = new Float32Array(new Uint8Array(readFileSync(samples)).buffer);
const extractor = new FeatureExtractor(manifest.features);
const size = manifest.features.frames * manifest.features.bins;
const count = countSegments(audio.length, manifest.segments);
const rows = new Float32Array(count * size);
for (let i = 0; i < count; i++) {
  const segment = segmentAt(audio, i, manifest.segments);
  extractor.compute(segment.samples, segment.frames, rows.subarray(i * size, (i + 1) * size));
}
writeFileSync(out, rows);
