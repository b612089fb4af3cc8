/** JSON with its numbers as they stand there, where a `number` would be shown in another way. */

/** A number as it is written: one that a `number` would round, or that would lose its `.0`. */
export class Numeral {
  readonly source: string;

  constructor(source: string) {
    this.source = source;
  }

  toString(): string {
    return this.source;
  }

  toJSON(): number {
    return Number(this.source);
  }
}

export type Json = null | boolean | number | string | Numeral | Json[] | { [name: string]: Json };

/** Nobody who writes JSON knows this: what begins with it is ours. */
const MARK = `${crypto.getRandomValues(new Uint32Array(4)).join("-")} `;
/** Without any of these, each number is written as `String` writes it. */
const UNUSUAL = /\d{16}|\d\.\d|\d[eE]|-0/;
const TOKEN = /["\d-]/g;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;

/** @throws SyntaxError */
export function parse(json: string): Json {
  const marked = UNUSUAL.test(json) ? withMarks(json) : json;
  if (marked === json) return JSON.parse(json) as Json;
  return JSON.parse(marked, (_, value: unknown) =>
    typeof value === "string" && value.startsWith(MARK) ? new Numeral(value.slice(MARK.length)) : value,
  ) as Json;
}

/** The same JSON; unusual numbers in it are strings that begin with `MARK`. */
function withMarks(json: string): string {
  const pieces: string[] = [];
  let from = 0;
  TOKEN.lastIndex = 0;
  for (let found = TOKEN.exec(json); found; found = TOKEN.exec(json)) {
    const at = found.index;
    if (found[0] === '"') {
      TOKEN.lastIndex = endOfString(json, at + 1);
      continue;
    }
    NUMBER.lastIndex = at;
    const source = NUMBER.exec(json)?.[0] ?? found[0];
    TOKEN.lastIndex = at + source.length;
    if (source === "-" || String(Number(source)) === source) continue;
    pieces.push(json.slice(from, at), `"${MARK}${source}"`);
    from = TOKEN.lastIndex;
  }
  if (from === 0) return json;
  pieces.push(json.slice(from));
  return pieces.join("");
}

/** Behind the quote that ends the string which begins there. */
function endOfString(json: string, begin: number): number {
  let quote = json.indexOf('"', begin);
  while (quote >= 0) {
    let slashes = 0;
    while (json[quote - 1 - slashes] === "\\") slashes += 1;
    if (slashes % 2 === 0) return quote + 1;
    quote = json.indexOf('"', quote + 1);
  }
  return json.length;
}
