// A safetensors file, strictly (docs/format.md, JSON and safetensors, strictly).

import { Float, parseJson } from "./json.js";

const WIDTHS = { U8: 1, F16: 2, F32: 4 };
const NAME = /^(?=.{1,256}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/;

/** Map from name to {dtype, shape, bytes}; `bytes` are views of `file`, a Uint8Array. */
export function readSafetensors(file, where) {
  const fail = (what) => {
    throw new Error(`${where}: got ${what}`);
  };
  if (file.length < 8) fail(`${file.length} bytes, wanted a safetensors file`);
  const length = Number(new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true));
  if (8 + length > file.length || length > 4 << 20 || file[8] !== 0x7b) fail("a header that is none of safetensors");
  const header = parseJson(file.subarray(8, 8 + length), where);
  const data = file.subarray(8 + length);
  const tensors = new Map();
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  for (const [name, entry] of entries) {
    if (!NAME.test(name)) fail(`the tensor name ${JSON.stringify(name.slice(0, 80))}`);
    if (entry === null || typeof entry !== "object") fail(`no entry for ${name}`);
    const { dtype, shape, data_offsets: offsets } = entry;
    const numbers = [shape, offsets].every(
      (list) => Array.isArray(list) && list.every((n) => !(n instanceof Float) && Number.isSafeInteger(n) && n >= 0),
    );
    if (Object.keys(entry).length !== 3 || !numbers || offsets.length !== 2 || !Object.hasOwn(WIDTHS, dtype)) {
      fail(`an entry for ${name} that is not dtype, shape, data_offsets`);
    }
    const bytes = shape.reduce((product, size) => product * size, WIDTHS[dtype]);
    if (offsets[1] - offsets[0] !== bytes) fail(`${offsets[1] - offsets[0]} bytes of ${name}, wanted ${bytes}`);
  }
  entries.sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0] || a.data_offsets[1] - b.data_offsets[1]);
  let end = 0;
  for (const [name, { dtype, shape, data_offsets: offsets }] of entries) {
    if (offsets[0] !== end) fail(`a hole or an overlap before ${name}`);
    end = offsets[1];
    tensors.set(name, { dtype, shape, bytes: data.subarray(...offsets) });
  }
  if (end !== data.length) fail(`${data.length} bytes of tensors, wanted ${end}`);
  return tensors;
}

/** Float32Array of an F32 or F16 tensor; like every browser, little-endian. */
export function floats({ dtype, bytes }) {
  const whole = new Uint8Array(bytes).buffer; // a copy, at an even place
  return dtype === "F32" ? new Float32Array(whole) : Float32Array.from(new Uint16Array(whole), half);
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
