import { expect, test } from "vitest";
import { filtersOf, matches, merged } from "../src/lib/requests.svelte";
import { request } from "./make";

const ids = (rows: { requestId: string }[]) => rows.map((row) => row.requestId);

test("what is new stands where its id belongs, what is known is replaced", () => {
  const rows = [request("req_5"), request("req_3"), request("req_1")];
  const news = [request("req_6"), request("req_4"), request("req_3", { verdict: "truncated" })];
  const all = merged(rows, news, true);
  expect(ids(all)).toEqual(["req_6", "req_5", "req_4", "req_3", "req_1"]);
  expect(all[3]?.verdict).toBe("truncated");
  expect(rows[1]?.verdict).toBe("complete");
});

test("what is older than all that is there waits for its page", () => {
  const rows = [request("req_5"), request("req_3")];
  expect(ids(merged(rows, [request("req_2")], false))).toEqual(["req_5", "req_3"]);
  expect(ids(merged(rows, [request("req_2")], true))).toEqual(["req_5", "req_3", "req_2"]);
  expect(ids(merged([], [request("req_2")], true))).toEqual(["req_2"]);
});

test("a request is matched as the API would", () => {
  const one = request("req_1", { model: "claude-opus-4-5", session: "s", requestClass: "main", verdict: null });
  const fits = (query: string) => matches(one, filtersOf(new URLSearchParams(query)));
  expect([fits(""), fits("model=OPUS"), fits("session=s&requestClass=main"), fits("inFlight=true"), fits("model=all")]).toEqual(Array(5).fill(true));
  expect([fits("model=haiku"), fits("session=t"), fits("inFlight=false"), fits("verdict=complete"), fits("status=200")]).toEqual(Array(5).fill(false));
});
