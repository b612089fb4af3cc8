/**
 * What the first view will ask the API, asked before most of the page is here: its script and the answers come at the
 * same time.
 */

/** Milliseconds after which an answer is not the latest any more. */
const FRESH_MS = 5000;

const asked = new Map<string, { at: number; response: Promise<Response> }>();

export function ask(address: string): void {
  const response = fetch(address, { credentials: "same-origin" });
  // Whoever takes it is told.
  response.catch(() => undefined);
  asked.set(address, { at: performance.now(), response });
}

/** The answer that was asked for already, once; null where there is none that can be used. */
export async function take(address: string): Promise<Response | null> {
  const found = asked.get(address);
  if (!found) return null;
  asked.delete(address);
  const response = await found.response.catch(() => null);
  // Whoever has logged in meanwhile has to ask again.
  return response?.ok && performance.now() - found.at < FRESH_MS ? response : null;
}
