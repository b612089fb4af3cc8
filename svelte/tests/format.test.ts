import { expect, test } from "vitest";
import { bytes, duration, modelName, money, percent, short } from "../src/lib/format";

test("money is exact enough to compare, and says what it does not know", () => {
  expect(money(null)).toBe("–");
  expect(money(0)).toBe("$0.00");
  expect(money(1_234_000)).toBe("$0.0012");
  expect(money(1_234_567_890)).toBe("$1.23");
  expect(money(500_000_000, true)).toBe("≥ $0.500");
});

test("durations have the unit that fits", () => {
  expect([12, 1500, 123_456, 9_400_000, 61_000_000, 7_260_000_000, 180_000_000_000].map(duration)).toEqual([
    "12 µs", "1.5 ms", "123 ms", "9.40 s", "1 min 01 s", "2 h 01 min", "2 d 2 h",
  ]);
});

test("counts and sizes", () => {
  expect([0, 999, 1234, 9_960, 123_456, 1_250_000].map(short)).toEqual(["0", "999", "1.2k", "10k", "123k", "1.3M"]);
  expect([12, 1500, 5_000_000].map(bytes)).toEqual(["12 B", "1.5 kB", "5.0 MB"]);
  expect([percent(1, 3), percent(1, 0), percent(1, 1000)]).toEqual(["33 %", "–", "0.1 %"]);
  expect(modelName("claude-opus-4-5-20260101")).toBe("opus-4-5");
});
