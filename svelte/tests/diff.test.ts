import { expect, test } from "vitest";
import { diff, hunks } from "../src/lib/diff";

const texts = (before: string, after: string) => diff(before, after).map((line) => ({ same: " ", added: "+", removed: "-" })[line.kind] + line.text);

test("says what was changed, and nothing else", () => {
  expect(texts("a\nb\nc", "a\nx\nc")).toEqual([" a", "-b", "+x", " c"]);
  expect(texts("", "a\nb")).toEqual(["+a", "+b"]);
  expect(texts("a\nb", "")).toEqual(["-a", "-b"]);
  expect(texts("same", "same")).toEqual([" same"]);
});

test("the old text and the new one can be made from it, whatever they are", () => {
  let seed = 7;
  const random = (below: number) => (seed = (seed * 48271) % 2147483647) % below;
  for (let round = 0; round < 300; round += 1) {
    const make = () => Array.from({ length: random(12) }, () => "abc"[random(3)]).join("\n");
    const [before, after] = [make(), make()];
    const all = diff(before, after);
    const part = (not: string) => all.filter((line) => line.kind !== not).map((line) => line.text).join("\n");
    expect(part("added")).toBe(before);
    expect(part("removed")).toBe(after);
    expect(all.filter((line) => line.old !== null).map((line) => line.old)).toEqual([...all.filter((line) => line.old !== null).keys()].map((i) => i + 1));
    expect(all.filter((line) => line.new !== null).map((line) => line.new)).toEqual([...all.filter((line) => line.new !== null).keys()].map((i) => i + 1));
  }
});

test("finds the shortest way", () => {
  const all = diff("a\nb\nc\na\nb\nb\na", "c\nb\na\nb\na\nc");
  expect(all.filter((line) => line.kind !== "same")).toHaveLength(5);
});

test("two long texts without a common line end in reasonable time", () => {
  const before = Array.from({ length: 20_000 }, (_, i) => `old ${i}`).join("\n");
  const after = Array.from({ length: 20_000 }, (_, i) => `new ${i}`).join("\n");
  expect(diff(before, after)).toHaveLength(40_000);
});

test("leaves out what is far from any change", () => {
  const before = Array.from({ length: 100 }, (_, i) => `line ${i}`);
  const after = before.with(10, "changed").with(90, "changed");
  const found = hunks(diff(before.join("\n"), after.join("\n")), 2);
  expect(found.map((hunk) => hunk.length)).toEqual([6, 6]);
  expect(found[0]?.[0]?.text).toBe("line 8");
});
