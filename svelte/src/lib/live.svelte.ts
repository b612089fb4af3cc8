/**
 * What happens now, from `GET /api/live`: one connection for the whole page.
 *
 * Texts are gathered and shown a few times a second, however small the pieces are that they come in.
 */

import { access } from "./api.svelte";
import type { Flight, LiveBlock, LiveNumbers, LiveText, RequestSummary, Status } from "./types";

const GATHER_MS = 80;
const AGAIN_MS = 3000;
/** Characters of a block that are kept here; the record has the rest. */
const KEPT = 200_000;

export class FlightBlock {
  readonly index: number;
  readonly kind: string;
  readonly name: string | null;
  text = $state("");

  constructor(block: LiveBlock) {
    this.index = block.index;
    this.kind = block.kind;
    this.name = block.name;
    this.text = block.text;
  }
}

export class LiveFlight {
  readonly flight: Flight;
  readonly startedAt: number;
  numbers = $state.raw<LiveNumbers>() as LiveNumbers;
  blocks = $state.raw<FlightBlock[]>([]);

  constructor(flight: Flight) {
    this.flight = flight;
    this.startedAt = Date.parse(flight.timestamp);
    this.numbers = flight;
    this.blocks = flight.blocks.map((block) => new FlightBlock(block));
  }

  append(piece: LiveBlock): void {
    const block = this.blocks.find((known) => known.index === piece.index);
    if (block) {
      const text = block.text + piece.text;
      block.text = text.length > KEPT ? text.slice(-KEPT) : text;
    } else this.blocks = [...this.blocks, new FlightBlock(piece)];
  }
}

export interface Watcher {
  /** Records that were written, the oldest first. */
  written?: (requests: RequestSummary[]) => void;
  /** Something was missed: fetch again. */
  missed?: () => void;
}

class Live {
  connected = $state(false);
  status = $state.raw<Status | null>(null);
  /** The oldest first. */
  flights = $state.raw<LiveFlight[]>([]);

  #source: EventSource | null = null;
  #watchers = new Set<Watcher>();
  #texts: LiveText[] = [];
  #requests: RequestSummary[] = [];
  #timer: ReturnType<typeof setTimeout> | null = null;
  #greeted = false;

  open(): void {
    if (this.#source) return;
    const source = new EventSource("/api/live");
    this.#source = source;
    const on = <T>(name: string, act: (data: T) => void) =>
      source.addEventListener(name, (event) => act(JSON.parse((event as MessageEvent<string>).data) as T));

    on<{ resumed: boolean }>("hello", ({ resumed }) => {
      this.connected = true;
      this.flights = [];
      this.#texts = [];
      if (this.#greeted && !resumed) this.#missed();
      this.#greeted = true;
    });
    on<Status>("status", (status) => (this.status = status));
    on<Flight>("flight", (flight) => this.#flight(flight));
    on<LiveText>("text", (text) => {
      this.#texts.push(text);
      this.#gather();
    });
    on<{ requests: LiveNumbers[] }>("numbers", ({ requests }) => {
      for (const numbers of requests) {
        const known = this.find(numbers.requestId);
        if (known) known.numbers = numbers;
      }
    });
    on<{ requestId: string }>("landed", ({ requestId }) => {
      this.flights = this.flights.filter((known) => known.flight.requestId !== requestId);
    });
    on<RequestSummary>("request", (request) => {
      this.#requests.push(request);
      this.#gather();
    });
    on("reset", () => this.#missed());

    source.onerror = () => {
      this.connected = false;
      // Otherwise the browser comes again by itself.
      if (source.readyState !== EventSource.CLOSED || this.#source !== source) return;
      this.#source = null;
      setTimeout(async () => {
        await access.check();
        if (!access.refused && access.viewer?.login !== "required") this.open();
      }, AGAIN_MS);
    };
  }

  close(): void {
    this.#source?.close();
    this.#source = null;
    this.connected = false;
    this.flights = [];
  }

  find(requestId: string): LiveFlight | undefined {
    return this.flights.find((known) => known.flight.requestId === requestId);
  }

  /** Be told; what is returned ends it. */
  watch(watcher: Watcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  #flight(flight: Flight): void {
    // It holds the texts that were gathered for it.
    this.#texts = this.#texts.filter((text) => text.requestId !== flight.requestId);
    const others = this.flights.filter((known) => known.flight.requestId !== flight.requestId);
    this.flights = [...others, new LiveFlight(flight)].sort((a, b) => (a.flight.requestId < b.flight.requestId ? -1 : 1));
  }

  #gather(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      const texts = this.#texts;
      const requests = this.#requests;
      this.#texts = [];
      this.#requests = [];
      for (const text of texts) this.find(text.requestId)?.append(text);
      if (requests.length) for (const watcher of this.#watchers) watcher.written?.(requests);
    }, GATHER_MS);
  }

  #missed(): void {
    for (const watcher of this.#watchers) watcher.missed?.();
  }
}

export const live = new Live();
