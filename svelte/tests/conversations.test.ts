import { expect, test } from "vitest";
import { answerOf, editsOf, resultsOf, turnsOf } from "../src/lib/content";
import { chapters, linesOf } from "../src/lib/thread";
import { agentTree } from "../src/lib/tree";
import { turnDiff } from "../src/lib/turns";
import { request } from "./make";

test("the line that went on last comes first, forks after it, each request once", () => {
  const requests = [
    request("req_1"),
    request("req_2", { parent: "req_1", link: "continues" }),
    request("req_3", { parent: "req_2", link: "continues" }),
    request("req_4", { parent: "req_1", link: "forks" }),
    request("req_5", { parent: "req_3", link: "compacts" }),
  ];
  const lines = linesOf(requests);
  expect(lines.map((line) => line.requests.map((one) => one.requestId))).toEqual([["req_1", "req_2", "req_3", "req_5"], ["req_4"]]);
  expect(chapters(lines[0]!).map((one) => one.requestId)).toEqual(["req_3", "req_5"]);
});

test("parents in a circle end", () => {
  const requests = [request("req_1", { parent: "req_2" }), request("req_2", { parent: "req_1" }), request("req_3", { parent: "req_2" })];
  expect(linesOf(requests).flatMap((line) => line.requests)).toHaveLength(3);
});

test("agents stand below those that called them, whatever clients say", () => {
  const agent = (name: string | null, parentAgent: string | null) => ({ agent: name, parentAgent, agentType: null, requests: [] });
  const [main] = agentTree([agent(null, null), agent("a", null), agent("b", "a")]);
  expect(main?.children[0]?.agent.agent).toBe("a");
  expect(main?.children[0]?.children[0]?.agent.agent).toBe("b");
  const circle = agentTree([agent("a", "b"), agent("b", "a"), agent("c", "nobody")]);
  expect(circle.map((node) => node.agent.agent).sort()).toEqual(["a", "b", "c"]);
});

test("a moved cache marker, and a list for a text, are no change", () => {
  const before = { system: "s", messages: [{ role: "user", content: [{ type: "text", text: "hi", cache_control: { type: "ephemeral" } }] }] };
  const after = {
    system: [{ type: "text", text: "s" }],
    messages: [{ content: "hi", role: "user" }, { role: "assistant", content: "yes" }, { role: "user", content: "more" }],
  };
  const diff = turnDiff(before, after);
  expect(diff.changes).toEqual([]);
  expect(diff.common).toBe(1);
  expect(diff.removed).toEqual([]);
  expect(diff.added.map((turn) => turn.role)).toEqual(["assistant", "user"]);
});

test("a line for billing is no part of the system prompt", () => {
  const system = (checksum: string) => [
    { type: "text", text: `x-anthropic-billing-header: cch=${checksum};` },
    { type: "text", text: "You are terse." },
  ];
  expect(turnDiff({ system: system("1"), messages: [] }, { system: system("2"), messages: [] }).changes).toEqual([]);
});

test("changed parameters, tools and messages are told", () => {
  const before = { model: "a", tools: [{ name: "Edit" }, { name: "Read" }], messages: [{ role: "user", content: "one" }] };
  const after = { model: "b", tools: [{ name: "Edit", description: "new" }], messages: [{ role: "user", content: "two" }] };
  const diff = turnDiff(before, after);
  expect(diff.changes.map((change) => change.what)).toEqual(["model", "tool Edit", "tool Read"]);
  expect([diff.common, diff.removed.length, diff.added.length]).toEqual([0, 1, 1]);
});

test("OpenAI's words are read as Anthropic's", () => {
  const call = { id: "c1", type: "function", function: { name: "Edit", arguments: '{"old_string": "a", "new_string": "b"}' } };
  const turns = turnsOf({ messages: [{ role: "assistant", content: null, tool_calls: [call] }, { role: "tool", tool_call_id: "c1", content: "done" }] });
  expect(turns[0]?.blocks[0]).toMatchObject({ type: "tool_use", name: "Edit", input: { old_string: "a" } });
  expect(resultsOf(turns).get("c1")).toMatchObject({ content: "done" });
  expect(editsOf({ old_string: "a", new_string: "b" })).toEqual([{ before: "a", after: "b" }]);
  expect(answerOf({ choices: [{ message: { role: "assistant", content: "hi" } }] })?.blocks).toEqual([{ type: "text", text: "hi" }]);
});

test("what is not as it should be does not throw", () => {
  for (const messages of [null, 7, "x", [null, 7, "x", { role: 7, content: 7 }, { content: [null, 7, { type: 7 }] }]]) {
    expect(() => resultsOf(turnsOf({ messages }))).not.toThrow();
  }
});
