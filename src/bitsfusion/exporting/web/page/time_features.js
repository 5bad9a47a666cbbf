// What stands for the time layers (docs/format.md, Time features): the values of a time step, all blocks side by side.

/** Function of a time step -> Float32Array [channels]; null where the model has its time layers. */
export function timeFeatures(model) {
  const entry = model.config?.time_features;
  if (entry?.kind === "basis") return basisFeatures(model, entry);
  if (entry?.kind === "cached") return cachedFeatures(model, entry);
  return null;
}

function basisFeatures(model, { channels, rank, points, start, spacing }) {
  const mean = model.other("time_proj.mean");
  const basis = model.other("time_proj.basis");
  const curve = model.other("time_proj.curve");
  if (mean.length !== channels || basis.length !== rank * channels || curve.length !== points * rank) {
    throw new Error(`${model.name}: time_proj: got tensors of other sizes than the config says`);
  }
  const end = start + spacing * (points - 3);
  return (step) => {
    if (!(step >= start && step <= end)) throw new Error(`time step ${step}: this model covers ${start} to ${end}`);
    const x = (step - start) / spacing;
    const first = Math.min(Math.floor(x), points - 4);
    const u = x - first;
    const v = 1 - u;
    const taps = [v ** 3, 3 * u ** 3 - 6 * u ** 2 + 4, 3 * v ** 3 - 6 * v ** 2 + 4, u ** 3];
    const made = Float64Array.from(mean);
    for (let k = 0; k < rank; k++) {
      const place = taps.reduce((sum, tap, i) => sum + tap * curve[(first + i) * rank + k], 0) / 6;
      for (let c = 0; c < channels; c++) made[c] += place * basis[k * channels + c];
    }
    return Float32Array.from(made);
  };
}

function cachedFeatures(model, { channels, steps, samplers }) {
  const rows = model.other("time_proj.rows");
  if (rows.length !== steps.length * channels) throw new Error(`${model.name}: time_proj.rows: got ${rows.length} values`);
  const places = new Map(steps.map((step, index) => [Math.fround(Number(step)), index]));
  const known = samplers.map(({ name, steps: count }) => `${name} with ${count} steps`).join(", ") || "other steps";
  return (step) => {
    const place = places.get(Math.fround(step));
    if (place === undefined) throw new Error(`time step ${step} is not stored: this model covers ${known}`);
    return rows.subarray(place * channels, (place + 1) * channels);
  };
}
