import { expect, test } from "vitest";
import { byBlocks, byLines } from "../src/lib/slices";

const TEXTS = ["", "a", "one\ntwo\n", "x".repeat(1000), "line\n".repeat(500), "😀".repeat(400), "# a\n\n```js\n\n\ncode\n\n```\n\nb\n".repeat(40)];

test.each(TEXTS)("slices together are the text (%#)", (text) => {
  for (const size of [10, 64, 1000]) {
    expect(byLines(text, size).join("")).toBe(text);
    expect(byBlocks(text, size).join("")).toBe(text);
    for (const slice of byLines(text, size)) expect(slice.length).toBeLessThanOrEqual(size + 1);
  }
});

test("no slice ends within a character", () => {
  for (const slice of byLines("😀".repeat(100), 9)) expect(slice.isWellFormed()).toBe(true);
});

test("fenced code stays in one slice", () => {
  const block = "text\n\n```\ncode\n\ncode\n\n```\n\n";
  for (const slice of byBlocks(block.repeat(20), 30)) expect(slice.split("```").length % 2).toBe(1);
});
