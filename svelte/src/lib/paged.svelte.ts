/** A list that is fetched page by page. */

import { untrack } from "svelte";
import { getJson } from "./api.svelte";

interface Page {
  nextCursor: string | null;
}

export class Paged<P extends Page, Item> {
  items = $state.raw<Item[]>([]);
  /** The page that came last. */
  page = $state.raw<P | null>(null);
  busy = $state(false);
  problem = $state("");

  readonly #path: string;
  readonly #query: Record<string, string | number>;
  readonly #itemsOf: (page: P) => Item[];
  #gone = new AbortController();

  constructor(path: string, query: Record<string, string | number>, itemsOf: (page: P) => Item[]) {
    this.#path = path;
    this.#query = query;
    this.#itemsOf = itemsOf;
  }

  get hasMore(): boolean {
    return this.page === null || this.page.nextCursor !== null;
  }

  /** The next page; with `anew`, the first one in place of all. */
  more(anew = false): Promise<void> {
    // An effect that asks for it does not depend on how it stands.
    return untrack(() => this.#fetch(anew));
  }

  async #fetch(anew: boolean): Promise<void> {
    if (this.busy || (!this.hasMore && !anew)) return;
    this.busy = true;
    this.problem = "";
    const { signal } = this.#gone;
    try {
      const cursor = anew ? null : (this.page?.nextCursor ?? null);
      const page = await getJson<P>(this.#path, { ...this.#query, cursor }, signal);
      this.items = cursor === null ? this.#itemsOf(page) : [...this.items, ...this.#itemsOf(page)];
      this.page = page;
    } catch (error) {
      if (!signal.aborted) this.problem = error instanceof Error ? error.message : String(error);
    } finally {
      this.busy = false;
    }
  }

  stop(): void {
    this.#gone.abort();
  }
}
