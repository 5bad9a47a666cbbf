// JSON as docs/format.md wants it: no key twice, no NaN, integers told from other numbers.

const LONGEST = 4 << 20; // bytes
const DEEPEST = 64;

/** A number with a point or an exponent: counts as a Number, and is told from an integer. */
export class Float extends Number {}

/** The value of strict JSON in UTF-8 bytes; throws an Error whose message begins with `where`. */
export function parseJson(bytes, where) {
  const fail = (what) => {
    throw new Error(`${where}: ${what}`);
  };
  if (bytes.length > LONGEST) fail(`got ${bytes.length} bytes of JSON, wanted at most ${LONGEST}`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    fail("got bytes that are no UTF-8");
  }
  const token = /[ \t\n\r]*([{}[\]:,]|"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|$)/y;
  let next;
  const advance = () => {
    const found = token.exec(text);
    if (found === null) fail("got text that is no JSON");
    next = found[1];
  };
  const take = (wanted) => {
    if (next !== wanted) fail(`got ${JSON.stringify(next)} in JSON, wanted ${wanted}`);
    advance();
  };
  const value = (depth) => {
    if (depth > DEEPEST) fail("got JSON that is nested too deeply");
    const first = next;
    if (first === "{") {
      const made = Object.create(null);
      advance();
      while (next !== "}") {
        if (next[0] !== '"') fail("got an object's key that is no text");
        const key = JSON.parse(next);
        if (key in made) fail(`got key ${JSON.stringify(key)} twice`);
        advance();
        take(":");
        made[key] = value(depth + 1);
        if (next === "}") break;
        take(",");
        if (next === "}") fail("got a comma before }");
      }
      advance();
      return made;
    }
    if (first === "[") {
      const made = [];
      advance();
      while (next !== "]") {
        made.push(value(depth + 1));
        if (next === "]") break;
        take(",");
        if (next === "]") fail("got a comma before ]");
      }
      advance();
      return made;
    }
    if (first === "" || "}],:".includes(first)) fail(`got ${JSON.stringify(first)} in JSON, wanted a value`);
    advance();
    const plain = JSON.parse(first);
    if (typeof plain !== "number") return plain;
    if (!Number.isFinite(plain)) fail(`got number ${first}, wanted a finite one`);
    return /[.eE]/.test(first) ? new Float(plain) : plain;
  };
  advance();
  const made = value(0);
  if (next !== "") fail("got more after the JSON");
  return made;
}

/** JSON in ASCII with sorted keys and no spaces, its numbers as Python writes them. */
export function canonical(value) {
  if (value instanceof Float) return pythonFloat(Number(value));
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.keys(value)
      .sort()
      .map((key) => `${text(key)}:${canonical(value[key])}`)
      .join(",")}}`;
  }
  return typeof value === "string" ? text(value) : JSON.stringify(value);
}

function text(value) {
  return JSON.stringify(value).replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The shortest decimal form of a double, with Python's choice of exponents and at least one decimal. */
function pythonFloat(value) {
  const [digits, exponent] = value.toExponential().split("e");
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  if (Object.is(value, -0)) return "-0.0";
  const sign = value < 0 ? "-" : "";
  const figures = digits.replace(/[-.]/g, "");
  if (power < 0) return `${sign}0.${"0".repeat(-power - 1)}${figures}`;
  const whole = figures.slice(0, power + 1).padEnd(power + 1, "0");
  return `${sign}${whole}.${figures.slice(power + 1) || "0"}`;
}
