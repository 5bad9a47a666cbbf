// The weights of a graph: what page.json lists, decoded from the packed bits into one buffer.

import { PackedModel, product } from "./packed.js";
import { floats, readSafetensors } from "./safetensors.js";

/** A component whose weights are stored as they are. */
export class DenseModel {
  constructor(name, weightFiles) {
    this.name = name;
    this.tensors = new Map(weightFiles.flatMap((file, index) => [...readSafetensors(file, `${name}, file ${index + 1}`)]));
  }

  other(key) {
    const tensor = this.tensors.get(key);
    if (tensor === undefined) throw new Error(`${this.name}: got no tensor ${key}`);
    return floats(tensor);
  }
}

/** The component that an entry of page.json's `graphs` describes; `file` gives the bytes of a path. */
export function openModel(name, entry, file) {
  const weights = entry.weights.map(file);
  return entry.config === null ? new DenseModel(name, weights) : new PackedModel(name, file(entry.config), weights);
}

/**
 * The buffer that a graph reads its weights from.
 * @param entry of page.json: `bytes` of the buffer, and `tensors` [name, stored as, offset, numbers] in it
 * @param {(done: number, total: number) => void} progress told of every tensor
 */
export async function fillWeights(model, entry, progress) {
  const made = new Uint8Array(entry.bytes);
  let name = null;
  let layer = null;
  let done = 0;
  for (const [key, kind, offset, count] of entry.tensors) {
    const parent = key.slice(0, -".weight".length);
    const packed = Object.hasOwn(model.config?.layers ?? {}, parent) && key.endsWith(".weight");
    if (packed && name !== parent) [name, layer] = [parent, model.layer(parent)];
    const values = packed ? { scale: () => layer.scale, float32: () => product(layer) }[kind]?.() ?? layer.levels : model.other(key);
    if (values.length !== count) throw new Error(`${model.name}: ${key}: got ${values.length} numbers, wanted ${count}`);
    if (kind === "int4") packNibbles(values, made.subarray(offset, offset + Math.ceil(count / 2)));
    else if (kind === "int8") new Int8Array(made.buffer, offset, count).set(values);
    else new Float32Array(made.buffer, offset, count).set(values);
    progress(++done, entry.tensors.length);
    if (done % 16 === 0) await new Promise((resume) => setTimeout(resume));
  }
  return made;
}

/** Two numbers a byte, the first in the lower half. */
function packNibbles(values, target) {
  for (let i = 0, at = 0; at < target.length; i += 2) target[at++] = (values[i] & 15) | ((values[i + 1] & 15) << 4);
}
