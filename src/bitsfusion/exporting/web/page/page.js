// The page: settings in, pictures out. All work is the worker's.

const $ = (id) => document.getElementById(id);
const SMALL = 128; // pixels up to which a picture is shown with hard edges
const STAGES = {
  text_encoder: "the text encoder",
  denoiser: "the denoiser",
  vae_decoder: "the picture decoder",
};
const asked = new URLSearchParams(location.search);
let worker = null;
let ready = false;
let drawing = false;
let failed = false;

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function say(text, share = null) {
  $("status").textContent = text;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

function fail(message) {
  failed = true;
  drawing = false;
  $("error").textContent = message;
  $("error").hidden = false;
  say(ready ? "Ready" : "Stopped", 0);
  update();
}

function update() {
  $("draw").disabled = $("another").disabled = !ready || drawing;
  $("stop").hidden = !drawing;
  $("draw").hidden = drawing;
  $("backend").disabled = drawing;
  document.body.dataset.state = failed ? "error" : drawing ? "drawing" : ready ? "ready" : "loading";
}

const listeners = {
  bytes({ done, total }) {
    $("bytes").textContent = megabytes(done);
    say(`Downloading ${megabytes(done)} of ${megabytes(total)}`, done / total);
  },
  progress({ stage, done, total }) {
    if (stage === "drawing") {
      say(`Step ${done} of ${total}`, done / total);
      return;
    }
    const [verb, part] = stage.split(" ");
    const line = `${verb[0].toUpperCase()}${verb.slice(1)} ${STAGES[part] ?? part}`;
    if (verb === "decoding") say(line, done / total);
    else say(line);
  },
  ready({ backend }) {
    ready = true;
    $("where").textContent = `, runs on ${backend === "webgpu" ? "WebGPU" : "WebAssembly"}`;
    say("Ready", 0);
    update();
    if (asked.has("draw")) $("form").requestSubmit();
  },
  picture({ pixels, width, height, step, steps }) {
    const canvas = $("picture");
    [canvas.width, canvas.height] = [width, height];
    canvas.classList.toggle("small", width <= SMALL);
    canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    const text = $("prompt").value.trim();
    canvas.setAttribute("aria-label", step === steps ? `Picture of: ${text}` : `Picture of: ${text}, step ${step} of ${steps}`);
  },
  drawn({ stopped, milliseconds }) {
    drawing = false;
    say(stopped ? "Stopped" : `Drawn in ${(milliseconds / 1000).toFixed(1)} s`, stopped ? 0 : 1);
    update();
    if (stopped) return;
    $("picture").toBlob((blob) => {
      URL.revokeObjectURL($("save").href);
      $("save").href = URL.createObjectURL(blob);
      $("save").hidden = false;
    });
  },
  error({ message }) {
    fail(message);
  },
};

function load() {
  worker?.terminate();
  [ready, drawing, failed] = [false, false, false];
  $("error").hidden = true;
  $("where").textContent = "";
  say("Starting");
  update();
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => listeners[data.type](data);
  worker.onerror = (event) => fail(event.message || "the page's worker could not be started");
  worker.postMessage({ type: "load", backend: $("backend").value });
}

function draw() {
  failed = false;
  drawing = true;
  $("error").hidden = true;
  $("save").hidden = true;
  say("Reading the prompt");
  update();
  worker.postMessage({
    type: "draw",
    prompt: $("prompt").value.trim(),
    negative: $("negative").value.trim(),
    seed: $("seed").valueAsNumber,
    steps: $("steps").valueAsNumber,
    guidance: $("guidance").valueAsNumber,
  });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (ready && !drawing) draw();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("another").addEventListener("click", () => {
  $("seed").valueAsNumber = $("seed").valueAsNumber + 1;
  $("form").requestSubmit();
});
$("stop").addEventListener("click", () => worker.postMessage({ type: "stop" }));
$("backend").addEventListener("change", load);

try {
  const manifest = await (await fetch(new URL("./page.json", import.meta.url))).json();
  const values = { prompt: manifest.defaults.prompt, negative: "", backend: "auto", ...manifest.defaults };
  for (const [name, value] of Object.entries(values)) $(name).value = asked.get(name) ?? value;
  load();
} catch (error) {
  fail(`page.json could not be read (${error.message})`);
}
