// The third reader of the packed folder, from docs/format.md: hashes are checked before a weight is used.

import { canonical, Float, parseJson } from "./json.js";
import { radixBytes, unpack, WIDE } from "./radix.js";
import { floats, readSafetensors } from "./safetensors.js";
import { sha256, Sha256 } from "./sha256.js";
import { decompress } from "./zstd.js";

const KEYS = {
  needed: ["config_sha256", "format_version", "layers", "others_sha256", "quant_method", "time_features"],
  optional: ["provenance", "removed", "source_sha256"],
};
const SUFFIX = ".packed";
const DTYPES = { F16: "torch.float16", F32: "torch.float32", U8: "torch.uint8" };

/** A packed model: its tensors, decoded one layer at a time. */
export class PackedModel {
  /**
   * @param {string} name of the component, for errors
   * @param {Uint8Array} configFile config.json
   * @param {Uint8Array[]} weightFiles the safetensors file, or the shards
   */
  constructor(name, configFile, weightFiles) {
    this.name = name;
    this.modelConfig = parseJson(configFile, `${name}/config.json`);
    this.config = checkedConfig(this.modelConfig.quantization_config, name);
    this.tensors = new Map();
    weightFiles.forEach((file, index) => {
      for (const [key, tensor] of readSafetensors(file, `${name}, weight file ${index + 1}`)) {
        if (this.tensors.has(key)) throw new Error(`${name}: got ${key} in two files, wanted it once`);
        this.tensors.set(key, tensor);
      }
    });
    this.#checkOthers();
    for (const layer of Object.keys(this.config.layers)) {
      if (this.tensors.get(layer + SUFFIX)?.dtype !== "U8") throw new Error(`${name}: ${layer}: got no packed bytes`);
    }
  }

  /** {bits, shape, scale: Float32Array [out], levels: Int8Array or Int16Array} of a packed layer. */
  layer(layer) {
    const { bits, shape, sha256: wanted } = this.config.layers[layer];
    const count = shape.reduce((product, size) => product * size, 1);
    try {
      const bytes = this.tensors.get(layer + SUFFIX).bytes;
      if (bytes.length < 4) throw new Error(`got ${bytes.length} bytes, wanted at least 4`);
      const cut = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
      if (4 + cut > bytes.length) throw new Error(`got ${bytes.length} bytes, wanted scales of ${cut}`);
      const planes = decompress(bytes.subarray(4, 4 + cut), 4 * shape[0]);
      const codes = decompress(bytes.subarray(4 + cut), radixBytes(count, bits));
      const scales = new Uint8Array(planes.length);
      for (let o = 0; o < shape[0]; o++) {
        for (let k = 0; k < 4; k++) scales[4 * o + k] = planes[k * shape[0] + o];
      }
      const found = new Sha256().update(scales).update(codes).hex();
      if (found !== wanted) throw new Error("got bytes of another hash than its config says: damaged");
      const scale = floats({ dtype: "F32", bytes: scales });
      if (!scale.every((value) => Number.isFinite(Math.fround(value * 2 ** (bits - 1))))) {
        throw new Error("got a scale that is not finite");
      }
      return { bits, shape, scale, levels: unpack(codes, count, bits) };
    } catch (error) {
      throw new Error(`${this.name}: ${layer}: ${error.message}`);
    }
  }

  /** Float32Array of a tensor that is no packed layer. */
  other(key) {
    const tensor = this.tensors.get(key);
    if (tensor === undefined) throw new Error(`${this.name}: got no tensor ${key}`);
    return floats(tensor);
  }

  #checkOthers() {
    const hash = new Sha256();
    const encoder = new TextEncoder();
    const keys = [...this.tensors.keys()].filter((key) => !key.endsWith(SUFFIX)).sort();
    for (const key of keys) {
      const { dtype, shape, bytes } = this.tensors.get(key);
      hash.update(encoder.encode(`${key} ${DTYPES[dtype]} ${shape.join("x")}\n`)).update(bytes);
      if (!floats(this.tensors.get(key)).every(Number.isFinite)) {
        throw new Error(`${this.name}: ${key}: got a value that is not finite`);
      }
    }
    if (hash.hex() !== this.config.others_sha256) {
      throw new Error(`${this.name}: got biases and norms of another hash than the config says: damaged`);
    }
    for (const key of this.tensors.keys()) {
      if (key.endsWith(SUFFIX) && !Object.hasOwn(this.config.layers, key.slice(0, -SUFFIX.length))) {
        throw new Error(`${this.name}: ${key}: got a packed layer that the config does not have`);
      }
    }
  }
}

/** float32 [out, ...]: the one product of level and scale. */
export function product({ shape, scale, levels }) {
  const row = levels.length / shape[0];
  const made = new Float32Array(levels.length);
  for (let o = 0, i = 0; o < shape[0]; o++) for (const end = i + row; i < end; i++) made[i] = levels[i] * scale[o];
  return made;
}

function checkedConfig(config, name) {
  const fail = (what) => {
    throw new Error(`${name}/config.json: ${what}`);
  };
  if (config?.quant_method !== "bitsfusion") fail("got no quant_method bitsfusion, wanted a packed model");
  const keys = Object.keys(config).filter((key) => !key.startsWith("_"));
  if (config.format_version !== 1 && config.format_version !== 2) {
    fail(`got format version ${config.format_version}, wanted 1 or 2: export it with a page of its time`);
  }
  for (const key of KEYS.needed) if (!keys.includes(key)) fail(`got no ${key}`);
  for (const key of keys) if (![...KEYS.needed, ...KEYS.optional].includes(key)) fail(`got an unknown key ${key}`);
  const hashed = Object.fromEntries(
    keys.filter((key) => key !== "config_sha256" && key !== "provenance").map((key) => [key, config[key]]),
  );
  const found = sha256(new TextEncoder().encode(canonical(hashed)));
  if (found !== config.config_sha256) fail("got a quantization_config of another hash than it says: damaged");
  for (const [layer, { bits, shape }] of Object.entries(config.layers)) {
    const whole = [bits, ...shape].every((number) => !(number instanceof Float) && Number.isSafeInteger(number));
    if (!whole || bits < 1 || bits > WIDE || shape.length < 2 || Math.min(...shape) < 1) {
      fail(`${layer}: got bits ${bits} and shape ${shape}`);
    }
  }
  return config;
}
