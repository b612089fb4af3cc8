/** What each view asks the API first. A test holds the views to it. */

import { address } from "./address";

/** Requests that Now shows below those in flight. */
export const RECENT = 12;
/** The first page of a list is what a screen shows, so that it is there soon. */
export const FIRST_PAGE = 60;

const MESSAGES = "/v1/messages";
/** Usage begins at a whole number of these, so that who asks twice in a moment asks the same. */
const GRAIN_MS = 10_000;

export const RANGES = [
  ["1h", "Hour", 3600],
  ["24h", "Day", 86_400],
  ["7d", "Week", 604_800],
  ["30d", "30 days", 2_592_000],
  ["365d", "Year", 31_536_000],
] as const;

/** When a range of that name began that ends now, as the API takes it. */
export function beginOf(range: string): string {
  const seconds = RANGES.find(([name]) => name === range)?.[2] ?? 86_400;
  return new Date(Math.floor(Date.now() / GRAIN_MS) * GRAIN_MS - seconds * 1000).toISOString();
}

/** Addresses, for that of a view. Of views that begin with one exchange, session or conversation there are none. */
export function firstOf(hash: string): string[] {
  const [path = "", text = ""] = hash.replace(/^#?\/?/, "").split("?", 2);
  const query = new URLSearchParams(text);
  if (path === "usage") {
    const since = beginOf(query.get("range") ?? "24h");
    return [address("/api/usage", { since, by: query.get("by") ?? "model" })];
  }
  if (text) return [];
  switch (path) {
    case "":
    case "now":
      return [address("/api/requests", { limit: RECENT, inFlight: false })];
    case "requests":
      return [address("/api/requests", { limit: FIRST_PAGE })];
    case "sessions":
      return [address("/api/sessions", { limit: 50 })];
    case "conversations":
      return [address("/api/conversations", { limit: 50, source: "all" })];
    case "cache":
      return [address("/api/cache-breaks", { limit: 30 }), address("/api/requests", { limit: 60, endpoint: MESSAGES })];
    default:
      return [];
  }
}
