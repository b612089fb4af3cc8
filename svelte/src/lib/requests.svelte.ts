/** A list of requests that grows at its end by pages, and at its top by what happens. */

import { untrack } from "svelte";
import { getJson } from "./api.svelte";
import { FIRST_PAGE } from "./first";
import type { RequestPage, RequestSummary } from "./types";

export interface Filters {
  q: string;
  model: string;
  session: string;
  agent: string;
  conversation: string;
  requestClass: string;
  status: string;
  verdict: string;
  inFlight: string;
  endpoint: string;
  since: string;
  until: string;
}

export const FILTERS: readonly (keyof Filters)[] = [
  "q",
  "model",
  "session",
  "agent",
  "conversation",
  "requestClass",
  "status",
  "verdict",
  "inFlight",
  "endpoint",
  "since",
  "until",
];

export function filtersOf(query: URLSearchParams): Filters {
  return Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""])) as unknown as Filters;
}

/** Whether a request that was just recorded belongs into the list; what only the store can tell is not asked. */
export function matches(request: RequestSummary, filters: Filters): boolean {
  const { model, session, agent, conversation, requestClass, status, verdict, inFlight, endpoint, since, until } = filters;
  const models = `${request.model ?? ""}\n${request.originalModel ?? ""}`.toLowerCase();
  return (
    (!model || model === "all" || models.includes(model.toLowerCase())) &&
    (!session || request.session === session) &&
    (!agent || request.agent === agent) &&
    (!conversation || request.conversation === conversation) &&
    (!requestClass || request.requestClass === requestClass) &&
    (!status || String(request.response?.statusCode ?? "") === status) &&
    (!verdict || request.verdict === verdict) &&
    (!inFlight || (request.verdict === null) === (inFlight === "true")) &&
    (!endpoint || request.endpoint === endpoint) &&
    (!since || Date.parse(request.timestamp) >= Date.parse(since)) &&
    (!until || Date.parse(request.timestamp) < Date.parse(until))
  );
}

/** `rows` (newest first) with these in them: in place of what was known of them, or where their ids belong. */
export function merged(rows: readonly RequestSummary[], news: readonly RequestSummary[], atEnd: boolean): RequestSummary[] {
  const latest = new Map(news.map((request) => [request.requestId, request]));
  const out = rows.map((row) => {
    const anew = latest.get(row.requestId);
    if (anew) latest.delete(row.requestId);
    return anew ?? row;
  });
  const last = rows.at(-1)?.requestId ?? "";
  for (const request of latest.values()) {
    // What is older than all rows comes with its page.
    if (!atEnd && request.requestId < last) continue;
    let at = 0;
    while (at < out.length && (out[at] as RequestSummary).requestId > request.requestId) at += 1;
    out.splice(at, 0, request);
  }
  return out;
}

const PAGE = 200;

export class RequestList {
  rows = $state.raw<RequestSummary[]>([]);
  /** Of the whole list, where it is known. */
  total = $state<number | null>(null);
  totalIsAtLeast = $state(false);
  loading = $state(false);
  problem = $state("");
  /** How many came since that a search would have to be asked again for. */
  unseen = $state(0);
  ready = $state(false);

  readonly filters: Filters;
  #cursor: string | null = null;
  #ended = false;
  #gone = new AbortController();

  constructor(filters: Filters) {
    this.filters = filters;
  }

  /** The next page, if there is one. */
  more(): Promise<void> {
    // An effect that asks for it does not depend on how it stands.
    return untrack(() => this.#fetch());
  }

  async #fetch(): Promise<void> {
    if (this.loading || this.#ended || this.problem) return;
    this.loading = true;
    try {
      const cursor = this.#cursor;
      const limit = cursor === null ? FIRST_PAGE : PAGE;
      const page = await getJson<RequestPage>("/api/requests", { ...this.filters, limit, cursor }, this.#gone.signal);
      this.rows = cursor === null ? merged(this.rows, page.requests, true) : append(this.rows, page.requests);
      if (page.total !== undefined) {
        this.total = page.total;
        this.totalIsAtLeast = page.totalIsAtLeast ?? false;
      }
      this.#cursor = page.nextCursor;
      this.#ended = page.nextCursor === null;
      this.ready = true;
    } catch (error) {
      if (!this.#gone.signal.aborted) this.problem = error instanceof Error ? error.message : String(error);
    } finally {
      this.loading = false;
    }
  }

  retry(): void {
    this.problem = "";
    void this.more();
  }

  written(requests: RequestSummary[]): void {
    const ours = requests.filter((request) => matches(request, this.filters));
    if (this.filters.q) {
      const known = new Set(this.rows.map((row) => row.requestId));
      this.unseen += ours.filter((request) => !known.has(request.requestId) && request.verdict !== null).length;
      return;
    }
    const before = this.rows.length;
    const left = new Set(requests.filter((request) => !ours.includes(request)).map((request) => request.requestId));
    const rows = left.size ? this.rows.filter((row) => !left.has(row.requestId)) : this.rows;
    this.rows = merged(rows, ours, this.#ended);
    if (this.total !== null) this.total += this.rows.length - before;
  }

  close(): void {
    this.#gone.abort();
  }
}

function append(rows: RequestSummary[], page: RequestSummary[]): RequestSummary[] {
  const last = rows.at(-1)?.requestId;
  return last === undefined ? page : rows.concat(page.filter((request) => request.requestId < last));
}
