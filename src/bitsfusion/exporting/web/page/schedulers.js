// The samplers of diffusers, from a pipeline's scheduler_config.json. Each has
//   timesteps: the time steps to call the model at, in their order
//   initialScale: what the first noise is multiplied by
//   modelInput(sample): what the model is given at the step to come
//   step(output, sample) -> {sample, clean}: the next sample, and the picture that the model has in mind

/** A scheduler of `steps` inference steps; throws an Error for one that is not known here. */
export function makeScheduler(config, steps) {
  const known = {
    PNDMScheduler: PNDM,
    DDIMScheduler: DDIM,
    EulerDiscreteScheduler: Euler,
    DPMSolverMultistepScheduler: DPMSolver,
    FlowMatchEulerDiscreteScheduler: FlowEuler,
  };
  const made = known[config._class_name];
  if (made === undefined) throw new Error(`scheduler: got ${config._class_name}, wanted ${Object.keys(known).join(", ")}`);
  const trained = config.num_train_timesteps ?? 1000;
  if (!Number.isInteger(steps) || steps < 1 || steps > trained) {
    throw new Error(`steps: got ${steps}, wanted a whole number from 1 to ${trained}`);
  }
  return new made(config, steps, trained);
}

const range = (count) => Array.from({ length: count }, (_, i) => i);
const linspace = (first, last, count) =>
  range(count).map((i) => (count === 1 ? first : first + ((last - first) * i) / (count - 1)));
const combine = (...terms) => {
  const made = new Float32Array(terms[0][1].length);
  for (const [factor, values] of terms) for (let i = 0; i < made.length; i++) made[i] += factor * values[i];
  return made;
};

/** Half to even, as numpy rounds. */
function round(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 ? low + 1 : low;
}

/** Cumulative products of 1 - beta. */
function cumulativeAlphas(config, trained) {
  const { beta_start: first = 0.0001, beta_end: last = 0.02, beta_schedule: kind = "linear" } = config;
  let betas = config.trained_betas;
  if (!betas) {
    const schedules = {
      linear: () => linspace(first, last, trained),
      scaled_linear: () => linspace(Math.sqrt(first), Math.sqrt(last), trained).map((root) => root ** 2),
      squaredcos_cap_v2: () => {
        const bar = (t) => Math.cos(((t + 0.008) / 1.008) * (Math.PI / 2)) ** 2;
        return range(trained).map((i) => Math.min(1 - bar((i + 1) / trained) / bar(i / trained), 0.999));
      },
    };
    if (!Object.hasOwn(schedules, kind)) throw new Error(`scheduler: got beta_schedule ${kind}`);
    betas = schedules[kind]();
  }
  let product = 1;
  let made = betas.map((beta) => (product *= 1 - beta));
  if (config.rescale_betas_zero_snr) {
    // Lin et al., arXiv:2305.08891, algorithm 1.
    const roots = made.map(Math.sqrt);
    const end = roots[trained - 1];
    made = roots.map((root) => (((root - end) * roots[0]) / (roots[0] - end)) ** 2);
  }
  return made;
}

/** The time steps of `steps` inference steps, rising; `spacing` in diffusers' words. */
function spaced(spacing, steps, trained, offset) {
  const ratio = trained / steps;
  const whole = Math.floor(ratio);
  if (spacing === "linspace") return linspace(0, trained - 1, steps);
  if (spacing === "leading") return range(steps).map((i) => i * whole + offset);
  if (spacing === "trailing") {
    return range(steps)
      .map((i) => round(trained - i * ratio) - 1)
      .reverse();
  }
  throw new Error(`scheduler: got timestep_spacing ${spacing}, wanted linspace, leading or trailing`);
}

/** The picture and the noise that a model's output stands for, at a cumulative alpha. */
function predicted(kind, alpha, output, sample) {
  const [signal, noise] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
  if (kind === "epsilon") return { clean: combine([1 / signal, sample], [-noise / signal, output]), noise: output };
  if (kind === "v_prediction") {
    return { clean: combine([signal, sample], [-noise, output]), noise: combine([signal, output], [noise, sample]) };
  }
  if (kind === "sample") return { clean: output, noise: combine([1 / noise, sample], [-signal / noise, output]) };
  throw new Error(`scheduler: got prediction_type ${kind}`);
}

/** Liu et al., arXiv:2202.09778, without the Runge-Kutta steps, as Stable Diffusion has it. */
class PNDM {
  initialScale = 1;
  #outputs = [];
  #count = 0;
  #first = null;

  constructor(config, steps, trained) {
    if (!config.skip_prk_steps) throw new Error("scheduler: got PNDM with Runge-Kutta steps, wanted skip_prk_steps");
    this.kind = config.prediction_type ?? "epsilon";
    this.alphas = cumulativeAlphas(config, trained);
    this.last = config.set_alpha_to_one ? 1 : this.alphas[0];
    const rising = spaced(config.timestep_spacing ?? "leading", steps, trained, config.steps_offset ?? 0).map(round);
    this.stride = Math.floor(trained / steps);
    this.timesteps = [...rising.slice(0, -1), ...rising.slice(-2, -1), ...rising.slice(-1)].reverse();
  }

  modelInput(sample) {
    return sample;
  }

  step(output, sample) {
    let at = this.timesteps[this.#count];
    let next = at - this.stride;
    const now = this.alphas[at];
    const { clean } = predicted(this.kind, now, output, sample);
    const outputs = this.#outputs;
    if (this.#count !== 1) {
      outputs.push(output);
      if (outputs.length > 4) outputs.shift();
    } else {
      [at, next] = [at + this.stride, at];
    }
    if (this.#count === 0) {
      this.#first = sample;
    } else if (this.#count === 1) {
      output = combine([0.5, output], [0.5, outputs[0]]);
      sample = this.#first;
    } else {
      const weights = [null, null, [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];
      output = combine(...weights[outputs.length].map((weight, i) => [weight, outputs.at(-1 - i)]));
    }
    this.#count += 1;
    const from = this.alphas[at];
    const to = next >= 0 ? this.alphas[next] : this.last;
    if (this.kind === "v_prediction") output = predicted(this.kind, from, output, sample).noise;
    const below = from * Math.sqrt(1 - to) + Math.sqrt(from * (1 - from) * to);
    return { sample: combine([Math.sqrt(to / from), sample], [-(to - from) / below, output]), clean };
  }
}

/** Song et al., arXiv:2010.02502, without added noise. */
class DDIM {
  initialScale = 1;
  #count = 0;

  constructor(config, steps, trained) {
    if (config.thresholding) throw new Error("scheduler: got DDIM with thresholding, wanted it without");
    this.kind = config.prediction_type ?? "epsilon";
    this.clip = config.clip_sample ?? true ? (config.clip_sample_range ?? 1) : Infinity;
    this.alphas = cumulativeAlphas(config, trained);
    this.last = config.set_alpha_to_one ?? true ? 1 : this.alphas[0];
    const spacing = config.timestep_spacing ?? "leading";
    this.timesteps = spaced(spacing, steps, trained, config.steps_offset ?? 0).map(round).reverse();
    this.stride = Math.floor(trained / steps);
  }

  modelInput(sample) {
    return sample;
  }

  step(output, sample) {
    const at = this.timesteps[this.#count++];
    const next = at - this.stride;
    const to = next >= 0 ? this.alphas[next] : this.last;
    const { clean, noise } = predicted(this.kind, this.alphas[at], output, sample);
    const clipped = clean.map((value) => Math.min(this.clip, Math.max(-this.clip, value)));
    return { sample: combine([Math.sqrt(to), clipped], [Math.sqrt(1 - to), noise]), clean: clipped };
  }
}

/** Karras et al., arXiv:2206.00364, algorithm 2 without churn, first order. */
class Euler {
  #count = 0;

  constructor(config, steps, trained) {
    for (const key of ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr"]) {
      if (config[key]) throw new Error(`scheduler: got Euler with ${key}, wanted it without`);
    }
    const continuous = config.timestep_type === "continuous" || config.interpolation_type === "log_linear";
    if (continuous) throw new Error("scheduler: got Euler on continuous time, wanted discrete steps");
    this.kind = config.prediction_type ?? "epsilon";
    const known = cumulativeAlphas(config, trained).map((alpha) => Math.sqrt((1 - alpha) / alpha));
    const spacing = config.timestep_spacing ?? "linspace";
    this.timesteps = spaced(spacing, steps, trained, config.steps_offset ?? 0).map(Math.fround).reverse();
    const sigma = (t) => {
      const low = Math.min(Math.max(Math.floor(t), 0), trained - 1);
      const high = Math.min(low + 1, trained - 1);
      return known[low] + (t - low) * (known[high] - known[low]);
    };
    this.sigmas = [...this.timesteps.map(sigma), config.final_sigmas_type === "sigma_min" ? known[0] : 0];
    const largest = Math.max(...this.sigmas);
    this.initialScale = spacing === "leading" ? Math.sqrt(largest ** 2 + 1) : largest;
  }

  modelInput(sample) {
    return combine([1 / Math.sqrt(this.sigmas[this.#count] ** 2 + 1), sample]);
  }

  step(output, sample) {
    const [now, next] = this.sigmas.slice(this.#count);
    this.#count += 1;
    const alpha = 1 / (now ** 2 + 1);
    const { clean } = predicted(this.kind, alpha, output, combine([Math.sqrt(alpha), sample]));
    const slope = combine([1 / now, sample], [-1 / now, clean]);
    return { sample: combine([1, sample], [next - now, slope]), clean };
  }
}

/** DPM-Solver++ of two steps: Lu et al., arXiv:2211.01095, algorithm 2. */
class DPMSolver {
  initialScale = 1;
  #count = 0;
  #before = null;

  constructor(config, steps, trained) {
    const others = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"];
    for (const key of [...others, "thresholding", "variance_type", "lambda_min_clipped"]) {
      if (config[key]) throw new Error(`scheduler: got DPM-Solver with ${key}, wanted it without`);
    }
    const { algorithm_type: algorithm = "dpmsolver++", solver_type: form = "midpoint", solver_order: order = 2 } = config;
    if (algorithm !== "dpmsolver++" || form !== "midpoint" || order > 2) {
      throw new Error(`scheduler: got ${algorithm}, ${form}, of order ${order}, wanted dpmsolver++, midpoint, of order 1 or 2`);
    }
    this.kind = config.prediction_type ?? "epsilon";
    const alphas = cumulativeAlphas(config, trained);
    if (config.rescale_betas_zero_snr) alphas[trained - 1] = 2 ** -24; // as diffusers keeps sigma finite
    const known = alphas.map((alpha) => Math.sqrt((1 - alpha) / alpha));
    const spacing = config.timestep_spacing ?? "linspace";
    const spaces = spacing === "trailing" ? steps : steps + 1;
    this.timesteps = spaced(spacing, spaces, trained, config.steps_offset ?? 0).map(round).reverse().slice(0, steps);
    const toZero = (config.final_sigmas_type ?? "zero") === "zero";
    this.sigmas = [...this.timesteps.map((t) => known[t]), toZero ? 0 : known[0]];
    this.single = order === 1;
    this.singleAtEnd = toZero || config.euler_at_final || ((config.lower_order_final ?? true) && steps < 15);
  }

  modelInput(sample) {
    return sample;
  }

  step(output, sample) {
    const [now, next] = this.sigmas.slice(this.#count);
    const scale = (sigma) => 1 / Math.sqrt(sigma ** 2 + 1);
    const { clean } = predicted(this.kind, scale(now) ** 2, output, sample);
    const last = this.#count === this.timesteps.length - 1;
    const gain = scale(next) * (1 - next / now);
    const terms = [[(next * scale(next)) / (now * scale(now)), sample], [gain, clean]];
    if (this.#before !== null && !this.single && !(last && this.singleAtEnd)) {
      // The change of log SNR in this step over that in the step before, halved.
      const half = (0.5 * Math.log(now / next)) / Math.log(this.sigmas[this.#count - 1] / now);
      terms.push([gain * half, clean], [-gain * half, this.#before]);
    }
    this.#before = clean;
    this.#count += 1;
    return { sample: combine(...terms), clean };
  }
}

/** Flow matching along straight lines: Lipman et al., arXiv:2210.02747; the shift of Esser et al., arXiv:2403.03206. */
class FlowEuler {
  initialScale = 1;
  #count = 0;

  constructor(config, steps, trained) {
    const others = ["use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
    for (const key of [...others, "invert_sigmas", "shift_terminal", "stochastic_sampling"]) {
      if (config[key]) throw new Error(`scheduler: got flow Euler with ${key}, wanted it without`);
    }
    const shift = config.shift ?? 1;
    const shifted = (sigma, round) => round(round(shift * sigma) / round(1 + round((shift - 1) * sigma)));
    // diffusers shifts the ends of the training schedule in float32, spaces the steps between, and shifts these. Stored
    // time features are found by the exact step, so that each is rounded where diffusers rounds.
    const ends = [1, Math.fround(1 / trained)].map((sigma) => shifted(sigma, Math.fround) * trained);
    const sigmas = linspace(...ends, steps).map((time) => shifted(time / trained, Number));
    this.sigmas = [...sigmas.map(Math.fround), 0];
    this.timesteps = this.sigmas.slice(0, -1).map((sigma) => Math.fround(sigma * trained));
  }

  modelInput(sample) {
    return sample;
  }

  step(output, sample) {
    const [now, next] = this.sigmas.slice(this.#count);
    this.#count += 1;
    return { sample: combine([1, sample], [next - now, output]), clean: combine([1, sample], [-now, output]) };
  }
}
