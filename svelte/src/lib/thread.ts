/** A recorded conversation's requests as lines: the main one, what forked off it, and where it was compacted. */

import type { RequestSummary } from "./types";

export interface Line {
  /** The oldest first; each one follows the one before it. */
  requests: RequestSummary[];
}

/** All lines, the one that went on last first. A request stands in the first line that it leads to. */
export function linesOf(requests: readonly RequestSummary[]): Line[] {
  const known = new Map(requests.map((request) => [request.requestId, request]));
  const parents = new Set(requests.map((request) => request.parent));
  const leaves = requests.filter((request) => !parents.has(request.requestId)).sort((a, b) => (a.requestId < b.requestId ? 1 : -1));
  const taken = new Set<string>();
  return leaves.map((leaf) => {
    const line: RequestSummary[] = [];
    for (let at: RequestSummary | undefined = leaf; at && !taken.has(at.requestId); at = at.parent ? known.get(at.parent) : undefined) {
      taken.add(at.requestId);
      line.push(at);
    }
    return { requests: line.reverse() };
  });
}

/** The requests whose bodies together tell a line: its last, and the last before each compaction. */
export function chapters(line: Line): RequestSummary[] {
  const { requests } = line;
  return requests.filter((_, at) => at === requests.length - 1 || requests[at + 1]?.link === "compacts");
}
