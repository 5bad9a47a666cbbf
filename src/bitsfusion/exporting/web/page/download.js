// Files by their place in page.json: counted as they come, and checked against their hashes.

import { Sha256 } from "./sha256.js";

/**
 * The bytes of one file.
 * @param {string} path relative to the page
 * @param {{bytes: number, sha256: string}} entry what page.json says of it
 * @param {(bytes: number) => void} received told of every part's length
 */
export async function download(path, entry, received) {
  let response;
  try {
    response = await fetch(new URL(path, import.meta.url));
  } catch (error) {
    throw new Error(`${path}: could not be fetched (${error.message})`);
  }
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}`);
  const made = new Uint8Array(entry.bytes);
  const hash = new Sha256();
  const reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length > entry.bytes) throw new Error(`${path}: got more than ${entry.bytes} bytes: damaged`);
    made.set(part.value, length);
    hash.update(part.value);
    length += part.value.length;
    received(part.value.length);
  }
  if (length !== entry.bytes) throw new Error(`${path}: got ${length} bytes, wanted ${entry.bytes}: damaged`);
  if (hash.hex() !== entry.sha256) throw new Error(`${path}: got bytes of another hash than page.json says: damaged`);
  return made;
}
