import { expect, test } from "vitest";
import { aligned, windowsOf } from "../src/lib/limits";
import { parse } from "../src/lib/router.svelte";
import { phases, silences } from "../src/lib/waterfall";

const NONE = { bodyReadUs: null, connectedUs: null, headersUs: null, firstEventUs: null, lastByteUs: null };

test("phases follow each other; what is not known belongs to the next", () => {
  const all = phases({ bodyReadUs: 10, connectedUs: 30, headersUs: 100, firstEventUs: 150, lastByteUs: 400 });
  expect(all.map((span) => [span.name, span.from, span.to])).toEqual([
    ["request", 0, 10], ["connect", 10, 30], ["headers", 30, 100], ["first byte", 100, 150], ["answer", 150, 400],
  ]);
  expect(phases({ ...NONE, bodyReadUs: 10, lastByteUs: 50 }).map((span) => span.name)).toEqual(["request", "connect – answer"]);
  expect(phases(NONE)).toEqual([]);
});

test("the longest silences come first", () => {
  const at = (us: number | null, event = "ping") => ({ us, event, detail: null, offset: 0, length: 1 });
  const found = silences([at(0), at(600_000), at(null), at(700_000), at(3_000_000, "message_stop")]);
  expect(found.map((one) => [one.from, one.to, one.before])).toEqual([[700_000, 3_000_000, "message_stop"], [0, 600_000, "ping"]]);
});

test("plan windows are read from whatever the API calls them", () => {
  const point = (timestamp: string, five: string) => ({
    timestamp, credential: "c", provider: null,
    limits: { "anthropic-ratelimit-unified-5h-utilization": five, "anthropic-ratelimit-unified-5h-reset": "1790000000", "anthropic-ratelimit-unified-7d_opus-utilization": "0.5", "anthropic-ratelimit-tokens-limit": "7" },
  });
  const windows = windowsOf([point("2026-11-23T06:00:00Z", "0.1"), point("2026-11-23T07:00:00Z", "0.2")]);
  expect(windows.map((window) => [window.name, window.used])).toEqual([["5h", 0.2], ["7d_opus", 0.5]]);
  expect(windows[0]?.reset).toBe(1790000000);
  expect(aligned(windows).times).toHaveLength(2);
});

test("addresses are read whatever somebody typed", () => {
  expect(parse("#/requests/req_1?tab=raw&q=a%20b")).toMatchObject({ view: "requests", rest: ["req_1"] });
  expect(parse("#/requests?q=a%20b").query.get("q")).toBe("a b");
  expect(parse("#/sessions/a%2Fb").rest).toEqual(["a/b"]);
  expect(parse("").view).toBe("");
  expect(parse("#/%E0%A4%A")).toMatchObject({ view: "%E0%A4%A" });
});
