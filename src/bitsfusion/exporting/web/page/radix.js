// Levels packed by radix (docs/format.md, Radix bytes).

const SYMBOLS = [0, 5, 3, 2, 1, 1, 1, 1, 1]; // a byte, by bits
export const WIDE = 8;

/** Bytes that `count` weights of `bits` bits take. */
export function radixBytes(count, bits) {
  return bits === WIDE ? count + Math.ceil(count / 8) : Math.ceil(count / SYMBOLS[bits]);
}

const tables = new Map();

/** Int8Array: the levels of every byte, one after the other. */
function table(bits) {
  let made = tables.get(bits);
  if (made === undefined) {
    const levels = 2 ** bits + 1;
    made = new Int8Array(256 * SYMBOLS[bits]);
    for (let byte = 0, at = 0; byte < 256; byte++) {
      for (let digit = 0, rest = byte; digit < SYMBOLS[bits]; digit++, rest = Math.floor(rest / levels)) {
        made[at++] = (rest % levels) - 2 ** (bits - 1);
      }
    }
    tables.set(bits, made);
  }
  return made;
}

/** The levels of `count` weights: Int8Array, of 8 bits Int16Array; throws an Error that does not name the layer. */
export function unpack(packed, count, bits) {
  return bits === WIDE ? wideLevels(packed, count) : levels(packed, count, bits);
}

function levels(packed, count, bits) {
  const largest = (2 ** bits + 1) ** SYMBOLS[bits] - 1;
  const places = SYMBOLS[bits];
  const known = table(bits);
  const made = new Int8Array(packed.length * places);
  for (let i = 0, at = 0; i < packed.length; i++) {
    const byte = packed[i];
    if (byte > largest) throw new Error(`got byte ${byte}, wanted at most ${largest} for ${bits} bits`);
    for (let digit = byte * places, end = digit + places; digit < end; ) made[at++] = known[digit++];
  }
  for (let i = count; i < made.length; i++) if (made[i]) throw new Error("got unused places that are not level 0");
  return made.subarray(0, count);
}

function wideLevels(packed, count) {
  const made = new Int16Array(count);
  const plane = packed.subarray(count);
  for (let i = 0; i < count; i++) {
    const ninth = (plane[i >> 3] >> (i & 7)) & 1;
    if (ninth && packed[i]) throw new Error(`got a ninth bit beside low bits ${packed[i]}, wanted 0`);
    made[i] = packed[i] + 256 * ninth - 128;
  }
  if (count % 8 && plane[plane.length - 1] >> count % 8) throw new Error("got unused bits that are not 0");
  return made;
}
