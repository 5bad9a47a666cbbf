// onnxruntime-web: on the graphics card by WebGPU where there is one, else on the processor by WebAssembly.

const BUILDS = {
  webgpu: { module: "./vendor/ort.webgpu.min.mjs", binary: "vendor/ort-wasm-simd-threaded.asyncify.wasm" },
  wasm: { module: "./vendor/ort.wasm.min.mjs", binary: "vendor/ort-wasm-simd-threaded.wasm" },
};
const LARGE = 2 ** 30; // bytes of float32 weights from which they are multiplied out at every call

/** "webgpu" where a graphics card answers, else "wasm". */
export async function bestBackend() {
  try {
    return (await navigator.gpu?.requestAdapter()) ? "webgpu" : "wasm";
  } catch {
    return "wasm";
  }
}

/** The path of a backend's WebAssembly file. */
export function runtimeFile(backend) {
  return BUILDS[backend].binary;
}

/** The module of onnxruntime-web; `binary` holds its WebAssembly. */
export async function loadRuntime(backend, binary) {
  const ort = await import(BUILDS[backend].module);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  return ort;
}

/**
 * A session of a graph whose weights lie in `weights`.
 *
 * Small models have their weights multiplied out to float32 once, large ones layer by layer at every call. Without
 * disable_quant_qdq ONNX Runtime may round activations to int8.
 */
export function openSession(ort, backend, graph, weights, entry) {
  const numbers = entry.tensors.reduce((sum, [, , , count]) => sum + count, 0);
  const large = 4 * numbers > LARGE;
  return ort.InferenceSession.create(graph, {
    executionProviders: [backend],
    externalData: [{ path: "weights", data: weights }],
    enableMemPattern: !large,
    logSeverityLevel: 3,
    extra: {
      session: { disable_quant_qdq: "1", ...(large && { disable_prepacking: "1" }) },
      ...(large && { optimization: { disable_specified_optimizers: "ConstantFolding" } }),
    },
  });
}
