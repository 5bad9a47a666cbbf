// Standard normal numbers as torch.randn draws them on a CPU from torch.Generator().manual_seed(seed).

/** MT19937 (Matsumoto and Nishimura 1998), seeded with the lower 32 bits of a whole number. */
class MersenneTwister {
  #state = new Uint32Array(624);
  #at = 624;

  constructor(seed) {
    const state = this.#state;
    state[0] = Number(BigInt(seed) & 0xffffffffn);
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  }

  next() {
    const state = this.#state;
    if (this.#at === 624) {
      for (let i = 0; i < 624; i++) {
        const joined = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
      }
      this.#at = 0;
    }
    let word = state[this.#at++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }
}

/**
 * `count` numbers, 16 or more: torch fills them with uniform ones of 24 bits and turns each block of 16 into normal ones
 * (Box and Muller), a block of its own for the last 16 where `count` is no multiple.
 */
export function randn(seed, count) {
  if (count < 16) throw new Error(`noise: got ${count} numbers, wanted 16 or more`);
  const twister = new MersenneTwister(seed);
  const uniform = () => (twister.next() & 0xffffff) / 2 ** 24;
  const made = Float32Array.from({ length: count }, uniform);
  const block = (start) => {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(Math.fround(1 - made[i])));
      const angle = 2 * Math.PI * made[i + 8];
      made[i] = radius * Math.cos(angle);
      made[i + 8] = radius * Math.sin(angle);
    }
  };
  for (let start = 0; start + 16 <= count; start += 16) block(start);
  if (count % 16) {
    for (let i = count - 16; i < count; i++) made[i] = uniform();
    block(count - 16);
  }
  return made;
}
