/** Something that is being fetched, is there, or could not be had. */

import { untrack } from "svelte";

export class Load<T> {
  value = $state.raw<T | null>(null);
  problem = $state("");
  busy = $state(false);

  readonly #fetch: (signal: AbortSignal) => Promise<T>;
  #gone = new AbortController();

  constructor(fetch: (signal: AbortSignal) => Promise<T>) {
    this.#fetch = fetch;
  }

  /** Fetch it, once; after a failure, or with `again`, anew. */
  start(again = false): Promise<void> {
    // An effect that starts it does not depend on how it stands.
    return untrack(() => this.#run(again));
  }

  async #run(again: boolean): Promise<void> {
    if (this.busy || (this.value !== null && !again)) return;
    this.busy = true;
    this.problem = "";
    const { signal } = this.#gone;
    try {
      this.value = await this.#fetch(signal);
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
