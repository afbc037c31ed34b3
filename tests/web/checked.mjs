// A fast decoder beside a sure one, made by hand: what is trusted, and when.
import assert from 'node:assert/strict';
import { CHECKED, CheckedDecoder } from '../../runtime/web/src/checked.js';

const sequence = (...tokens) => ({ tokens: Int32Array.from(tokens), logProbs: new Float32Array(tokens.length) });

/** A decoder that says the number of the segment, plus something from one on. */
function decoder({ from = Infinity, error = null, longer = false } = {}) {
  const made = { asked: 0, released: 0 };
  made.decode = async (segments) => {
    made.asked += segments.length;
    if (error && made.asked > from) throw error;
    return segments.map(({ index }) =>
      longer ? sequence(index, 7) : sequence(index + (index >= from && !error ? 1 : 0)),
    );
  };
  made.release = async () => void made.released++;
  return made;
}
const segments = (from, count) => Array.from({ length: count }, (_, i) => ({ index: from + i }));

async function run(fast) {
  const sure = decoder();
  const remarks = [];
  const checked = new CheckedDecoder(fast, sure, (remark) => remarks.push(remark));
  const found = [];
  for (let at = 0; at < 40; at += 4) found.push(...(await checked.decode(segments(at, 4))));
  assert.deepEqual(found.map(({ tokens }) => tokens[0]), segments(0, 40).map(({ index }) => index));
  await checked.release();
  return { fast, sure, remarks };
}

const equal = await run(decoder());
assert.equal(equal.sure.asked, CHECKED);
assert.equal(equal.fast.asked, 40);
assert.deepEqual(equal.remarks, []);

for (const from of [0, 5]) {
  const other = await run(decoder({ from }));
  assert.equal(other.sure.asked, 40);
  assert.ok(other.fast.asked <= 8);
  assert.equal(other.fast.released, 1);
  assert.match(other.remarks.join(), /said other tokens/);
}
const longer = await run(decoder({ longer: true }));
assert.match(longer.remarks.join(), /said other tokens/);

for (const from of [0, 20]) {
  const lost = await run(decoder({ from, error: new Error('device lost') }));
  assert.match(lost.remarks.join(), /failed \(Error: device lost\)/);
  assert.equal(lost.remarks.length, 1);
  assert.equal(lost.fast.released, 1);
}
console.log('checked');
