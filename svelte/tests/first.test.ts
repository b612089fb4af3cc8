import { render } from "@testing-library/svelte";
import { afterEach, expect, test, vi } from "vitest";
import { firstOf } from "../src/lib/first";
import { ask, take } from "../src/lib/early";
import { router, parse } from "../src/lib/router.svelte";
import Cache from "../src/views/Cache.svelte";
import Conversations from "../src/views/Conversations.svelte";
import Now from "../src/views/Now.svelte";
import Requests from "../src/views/Requests.svelte";
import Sessions from "../src/views/Sessions.svelte";
import Usage from "../src/views/Usage.svelte";

vi.stubGlobal("matchMedia", () => ({ matches: false, addEventListener: () => undefined, removeEventListener: () => undefined }));
vi.stubGlobal("ResizeObserver", class {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
});

afterEach(() => vi.useRealTimers());

test.each([
  ["#/", () => render(Now)],
  ["#/now", () => render(Now)],
  ["#/requests", () => render(Requests, { open: "" })],
  ["#/sessions", () => render(Sessions)],
  ["#/conversations", () => render(Conversations)],
  ["#/cache", () => render(Cache)],
  ["#/usage", () => render(Usage)],
  ["#/usage?range=7d&by=session", () => render(Usage)],
])("%s asks what was asked for it already", async (hash, show) => {
  vi.useFakeTimers({ now: 1_790_000_000_000, toFake: ["Date"] });
  const asked: string[] = [];
  vi.stubGlobal("fetch", (address: string) => {
    asked.push(address);
    return new Promise(() => undefined);
  });
  router.route = parse(hash);
  const { unmount } = show();
  await vi.waitFor(() => expect(asked).toEqual(firstOf(hash)));
  expect(asked).not.toEqual([]);
  unmount();
});

test("nothing is asked early for one exchange, or for a filter", () => {
  expect(["#/requests/req_1", "#/requests?q=x", "#/sessions/s", "#/login"].flatMap(firstOf)).toEqual([]);
});

test("an answer is taken once, and only where it is one", async () => {
  let status = 200;
  vi.stubGlobal("fetch", () => Promise.resolve(new Response("{}", { status })));
  ask("/api/a");
  expect((await take("/api/a"))?.status).toBe(200);
  expect(await take("/api/a")).toBeNull();
  status = 401;
  ask("/api/a");
  expect(await take("/api/a")).toBeNull();
  vi.stubGlobal("fetch", () => Promise.reject(new TypeError("no connection")));
  ask("/api/a");
  expect(await take("/api/a")).toBeNull();
});
