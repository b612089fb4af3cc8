import type { Load } from "../src/lib/load.svelte";

/** What components do with a load. What is returned ends it. */
export function started<T>(load: Load<T>): () => void {
  return $effect.root(() => {
    $effect(() => {
      void load.start();
      return () => load.stop();
    });
  });
}
