/** Differences of two texts by lines (Myers, 1986). */

export interface DiffLine {
  kind: "same" | "added" | "removed";
  text: string;
  /** Line numbers in the old and the new text, from 1. */
  old: number | null;
  new: number | null;
}

/** Above this many differing lines the search would take too long: all old lines go, all new ones come. */
const EFFORT = 600;

export function lines(text: string): string[] {
  const all = text.split("\n");
  if (all.length > 1 && all.at(-1) === "") all.pop();
  return all;
}

export function diff(before: string, after: string): DiffLine[] {
  const a = before === "" ? [] : lines(before);
  const b = after === "" ? [] : lines(after);
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let foot = 0;
  while (foot < a.length - head && foot < b.length - head && a[a.length - 1 - foot] === b[b.length - 1 - foot]) foot += 1;

  const out: DiffLine[] = [];
  const same = (i: number, j: number) => out.push({ kind: "same", text: a[i] ?? "", old: i + 1, new: j + 1 });
  for (let i = 0; i < head; i += 1) same(i, i);
  for (const step of middle(a.slice(head, a.length - foot), b.slice(head, b.length - foot))) {
    const old = step.old === null ? null : step.old + head;
    const now = step.new === null ? null : step.new + head;
    out.push({ ...step, old, new: now });
  }
  for (let k = foot; k > 0; k -= 1) same(a.length - k, b.length - k);
  return out;
}

function middle(a: string[], b: string[]): DiffLine[] {
  const trace = search(a, b);
  const removed = (i: number): DiffLine => ({ kind: "removed", text: a[i] ?? "", old: i + 1, new: null });
  const added = (j: number): DiffLine => ({ kind: "added", text: b[j] ?? "", old: null, new: j + 1 });
  if (trace === null) return [...a.map((_, i) => removed(i)), ...b.map((_, j) => added(j))];

  const out: DiffLine[] = [];
  let x = a.length;
  let y = b.length;
  for (let d = trace.length - 1; d >= 0; d -= 1) {
    const v = trace[d] as Map<number, number>;
    const k = x - y;
    const down = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1;
    const startX = d === 0 ? 0 : (v.get(from) ?? 0);
    const startY = d === 0 ? 0 : startX - from;
    while (x > startX && y > startY) {
      x -= 1;
      y -= 1;
      out.push({ kind: "same", text: a[x] ?? "", old: x + 1, new: y + 1 });
    }
    if (d > 0) out.push(down ? added(--y) : removed(--x));
  }
  return out.reverse();
}

/** The furthest points of each round, before that round; null when there is too much to do. */
function search(a: string[], b: string[]): Map<number, number>[] | null {
  const v = new Map([[1, 0]]);
  const trace: Map<number, number>[] = [];
  const most = Math.min(a.length + b.length, EFFORT);
  for (let d = 0; d <= most; d += 1) {
    // Only the diagonals that round d reads.
    const before = new Map<number, number>();
    for (let k = -d - 1; k <= d + 1; k += 1) if (v.has(k)) before.set(k, v.get(k) as number);
    trace.push(before);
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1));
      let x = down ? (v.get(k + 1) ?? 0) : (v.get(k - 1) ?? 0) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      v.set(k, x);
      if (x >= a.length && x - k >= b.length) return trace;
    }
  }
  return null;
}

export type Hunk = DiffLine[];

/** The changes with `context` lines around each; what is far from any change is left out. */
export function hunks(all: DiffLine[], context = 3): Hunk[] {
  const out: Hunk[] = [];
  let last = -1;
  all.forEach((line, at) => {
    if (line.kind === "same") return;
    const start = Math.max(at - context, 0);
    if (out.length === 0 || start > last + 1) {
      out.push([]);
      last = start - 1;
    }
    const hunk = out.at(-1) as Hunk;
    const end = Math.min(at + context, all.length - 1);
    for (let i = last + 1; i <= end; i += 1) hunk.push(all[i] as DiffLine);
    last = Math.max(last, end);
  });
  return out;
}
