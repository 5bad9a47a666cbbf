// One zstd frame of a known size, checked from end to end before it is decoded (RFC 8878, section 3.1.1).

import { decompress as decode } from "./vendor/fzstd.mjs";

const WINDOW = 8 << 20;

/** The content of the one frame in `bytes`, exactly `size` bytes; throws an Error that does not name the layer. */
export function decompress(bytes, size) {
  checkFrame(bytes, size);
  const made = new Uint8Array(size);
  let out;
  try {
    out = decode(bytes, made);
  } catch (error) {
    throw new Error(`got a broken zstd frame (${error.message}), wanted ${size} bytes`);
  }
  if (out.length !== size) throw new Error(`got ${out.length} bytes under zstd, wanted ${size}`);
  return out;
}

function checkFrame(bytes, size) {
  const fail = (what) => {
    throw new Error(`got ${what}, wanted a zstd frame of ${size} bytes`);
  };
  const number = (at, length) => {
    if (at + length > bytes.length) fail("a zstd frame that is cut");
    let value = 0;
    for (let i = length - 1; i >= 0; i--) value = value * 256 + bytes[at + i];
    return value;
  };
  if (bytes.length < 5 || number(0, 4) !== 0xfd2fb528) fail("bytes that are no zstd frame");
  const descriptor = bytes[4];
  const single = (descriptor >> 5) & 1;
  const checksum = (descriptor >> 2) & 1;
  const sizeBytes = [single, 2, 4, 8][descriptor >> 6];
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3];
  let at = 5;
  if (!single) {
    const power = 10 + (number(at, 1) >> 3);
    const window = 2 ** power * (1 + (bytes[at] & 7) / 8);
    if (window > Math.max(WINDOW, size)) fail(`a zstd window of ${window} bytes`);
    at += 1;
  }
  if (number(at, dictionaryBytes)) fail("a zstd frame with a dictionary");
  at += dictionaryBytes;
  if (!sizeBytes) fail("a zstd frame that declares no size");
  const declared = number(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0);
  if (declared !== size) fail(`a zstd frame that declares ${declared} bytes`);
  at += sizeBytes;
  for (let last = 0; !last; ) {
    const header = number(at, 3);
    const kind = (header >> 1) & 3;
    last = header & 1;
    if (kind === 3) fail("a zstd block of a reserved kind");
    at += 3 + (kind === 1 ? 1 : header >> 3);
  }
  at += checksum * 4;
  if (at > bytes.length) fail("a zstd frame that is cut");
  if (at < bytes.length) fail(`${bytes.length - at} bytes after the zstd frame`);
}
