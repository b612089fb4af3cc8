/** The phases of a request, and the silences of its answer. */

import type { StreamEvent, Timings } from "./types";

export interface Span {
  name: string;
  meaning: string;
  from: number;
  to: number;
}

/** Phases that came about, in order; times in microseconds since the request's headers. `now`: of one that is in flight. */
export function phases(timings: Timings, now: number | null = null): Span[] {
  const marks: [string, string, number | null][] = [
    ["request", "the request's body arrives", timings.bodyReadUs],
    ["connect", "route, queue and connection to the upstream", timings.connectedUs],
    ["headers", "the upstream has the request and has not answered", timings.headersUs],
    ["first byte", "the answer has begun, its body has not", timings.firstEventUs],
    ["answer", "the answer's body, to its last byte", timings.lastByteUs ?? now],
  ];
  const spans: Span[] = [];
  let from = 0;
  let unknown = "";
  for (const [name, meaning, at] of marks) {
    if (at === null) {
      unknown = unknown || name;
      continue;
    }
    // What is not known in between belongs to the phase that ends next.
    spans.push({ name: unknown && unknown !== name ? `${unknown} – ${name}` : name, meaning, from, to: Math.max(at, from) });
    from = Math.max(at, from);
    unknown = "";
  }
  return spans;
}

export interface Silence {
  from: number;
  to: number;
  /** What came after it. */
  before: string;
}

/** The longest times without an event, longest first. */
export function silences(events: readonly StreamEvent[], most = 5, least = 500_000): Silence[] {
  const found: Silence[] = [];
  let last: number | null = null;
  for (const event of events) {
    if (event.us === null) continue;
    if (last !== null && event.us - last >= least) {
      found.push({ from: last, to: event.us, before: event.detail ? `${event.event} (${event.detail})` : event.event });
    }
    last = event.us;
  }
  return found.sort((a, b) => b.to - b.from - (a.to - a.from)).slice(0, most);
}
