// Loads the model and draws, away from the page, which stays usable. Messages to it are {type, ...}:
//   load {backend}, draw {prompt, negative, seed, steps, guidance}, stop
// and from it: progress {stage, done, total}, bytes {done, total}, ready {backend}, picture {pixels, width, height, step,
// steps, milliseconds}, drawn {stopped, milliseconds}, error {message}.

import { download } from "./download.js";
import { fillWeights, openModel } from "./graphs.js";
import { randn } from "./noise.js";
import { bestBackend, loadRuntime, openSession, runtimeFile } from "./runtime.js";
import { makeScheduler } from "./schedulers.js";
import { timeFeatures } from "./time_features.js";
import { Tokenizer } from "./vendor/tokenizers.mjs";

const LARGE_LATENTS = 1024; // places from which the two halves of guidance are computed one after the other
const PREVIEWS = 0.5; // of the time go into pictures on the way, at most

let pipeline = null;
let stopped = false;

self.onmessage = async ({ data }) => {
  if (data.type === "stop") {
    stopped = true;
    return;
  }
  try {
    if (data.type === "load") await load(data.backend);
    if (data.type === "draw") await draw(data);
  } catch (error) {
    self.postMessage({ type: "error", message: error?.message ?? String(error) });
  }
};

const report = (stage, done, total) => self.postMessage({ type: "progress", stage, done, total });
/** Lets messages in. */
const breathe = () => new Promise((resume) => setTimeout(resume));

async function load(wanted) {
  const response = await fetch(new URL("./page.json", import.meta.url));
  if (!response.ok) throw new Error(`page.json: the server answered ${response.status}`);
  const manifest = await response.json();
  const backend = wanted === "auto" ? await bestBackend() : wanted;

  const paths = Object.keys(manifest.files).filter((path) => !path.endsWith(".wasm") || path === runtimeFile(backend));
  const total = paths.reduce((sum, path) => sum + manifest.files[path].bytes, 0);
  let done = 0;
  const files = new Map();
  for (const path of paths) {
    const bytes = await download(path, manifest.files[path], (length) => {
      done += length;
      self.postMessage({ type: "bytes", done, total });
    });
    files.set(path, bytes);
  }
  const taken = (path) => {
    const bytes = files.get(path);
    files.delete(path);
    return bytes;
  };

  const text = (path) => JSON.parse(new TextDecoder().decode(taken(path)));
  const tokenizer = new Tokenizer(text("model/tokenizer/tokenizer.json"), text("model/tokenizer/tokenizer_config.json"));
  const ort = await loadRuntime(backend, taken(runtimeFile(backend)));
  const sessions = {};
  let features = null;
  for (const [name, entry] of Object.entries(manifest.graphs)) {
    const model = openModel(entry.component, entry, taken);
    const weights = await fillWeights(model, entry, (at, all) => report(`decoding ${name}`, at, all));
    if (name === "denoiser") features = timeFeatures(model);
    report(`preparing ${name}`, 0, 1);
    await breathe();
    // A text is encoded once, with operators that few graphics drivers have.
    const where = name === "text_encoder" ? "wasm" : backend;
    sessions[name] = await openSession(ort, where, taken(entry.graph), weights, entry);
  }
  pipeline = { manifest, tokenizer, ort, sessions, features };
  self.postMessage({ type: "ready", backend });
}

/** Token ids of a text, cut and padded to the encoder's length, and 1 where they are no padding. */
function tokens(text) {
  const { length, pad, end } = pipeline.manifest.tokenizer;
  let ids = [...pipeline.tokenizer.encode(text).ids];
  if (ids.length > length) ids = [...ids.slice(0, length - 1), end];
  const padded = (values, filler) => [...values, ...Array(length - ids.length).fill(filler)];
  return { ids: padded(ids, pad), mask: padded(Array(ids.length).fill(1), 0) };
}

async function run(name, inputs) {
  const session = pipeline.sessions[name];
  const { output } = await session.run(inputs);
  const data = await output.getData();
  const made = { data: Float32Array.from(data), dims: output.dims };
  output.dispose();
  return made;
}

const tensor = (type, data, dims) => new pipeline.ort.Tensor(type, data, dims);

async function encode(text) {
  const { ids, mask } = tokens(text);
  const row = (values) => tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const masked = pipeline.manifest.tokenizer.masked ? { attention_mask: row(mask) } : {};
  return run("text_encoder", { input_ids: row(ids), ...masked });
}

/** The model's output for each of `states`, for one sample. */
async function predict(sample, time, states) {
  const { latents } = pipeline.manifest;
  const together = latents[1] * latents[2] <= LARGE_LATENTS;
  const parts = together ? [states] : states.map((state) => [state]);
  const outputs = [];
  for (const part of parts) {
    const batch = part.length;
    const joined = (arrays) => {
      const made = new Float32Array(arrays.length * arrays[0].length);
      arrays.forEach((array, index) => made.set(array, index * array.length));
      return made;
    };
    const repeated = (values) => joined(Array(batch).fill(values));
    const { output } = {
      output: await run("denoiser", {
        sample: tensor("float32", repeated(sample), [batch, ...latents]),
        encoder_hidden_states: tensor("float32", joined(part.map(({ data }) => data)), [batch, ...part[0].dims.slice(1)]),
        ...(pipeline.features
          ? { time_features: tensor("float32", repeated(pipeline.features(time)), [batch, pipeline.features(time).length]) }
          : { timestep: tensor("float32", repeated([time]), [batch]) }),
      }),
    };
    for (let i = 0; i < batch; i++) outputs.push(output.data.subarray(i * sample.length, (i + 1) * sample.length));
  }
  return outputs;
}

/** Latents as pixels, four bytes each. */
async function decode(sample) {
  const { latents, vae } = pipeline.manifest;
  const scaled = sample.map((value) => value / vae.scaling_factor);
  const { data, dims } = await run("vae_decoder", { latents: tensor("float32", scaled, [1, ...latents]) });
  const [height, width] = dims.slice(2);
  const pixels = new Uint8ClampedArray(4 * height * width).fill(255);
  for (let c = 0; c < 3; c++) {
    for (let i = 0, plane = c * height * width; i < height * width; i++) {
      pixels[4 * i + c] = 255 * Math.min(1, Math.max(0, data[plane + i] / 2 + 0.5));
    }
  }
  if (!data.every(Number.isFinite)) throw new Error("the picture has values that are not finite: another backend may do");
  return { pixels, width, height };
}

async function draw({ prompt, negative, seed, steps, guidance }) {
  stopped = false;
  const begun = performance.now();
  const { latents, scheduler: config } = pipeline.manifest;
  const scheduler = makeScheduler(config, steps);
  const texts = guidance > 1 ? [negative, prompt] : [prompt];
  const states = [];
  for (const text of texts) states.push(await encode(text));

  const show = async (sample, step) => {
    const picture = await decode(sample);
    const milliseconds = performance.now() - begun;
    self.postMessage({ type: "picture", ...picture, step, steps: scheduler.timesteps.length, milliseconds });
  };
  let sample = randn(seed, latents[0] * latents[1] * latents[2]).map((value) => value * scheduler.initialScale);
  let showing = 0;
  let last = begun;
  for (const [index, time] of scheduler.timesteps.entries()) {
    const outputs = await predict(scheduler.modelInput(sample), time, states);
    const output = outputs.length === 1 ? outputs[0] : outputs[1].map((text, i) => outputs[0][i] + guidance * (text - outputs[0][i]));
    const made = scheduler.step(output, sample);
    sample = made.sample;
    report("drawing", index + 1, scheduler.timesteps.length);
    await breathe();
    if (stopped) break;
    const now = performance.now();
    if (index + 1 < scheduler.timesteps.length && showing <= PREVIEWS * (now - last)) {
      await show(made.clean, index + 1);
      last = performance.now();
      showing = last - now;
    }
  }
  if (!stopped) await show(sample, scheduler.timesteps.length);
  self.postMessage({ type: "drawn", stopped, milliseconds: performance.now() - begun });
}
