import { expect, test } from "vitest";
import { isObject, parsed } from "../src/lib/content";
import { Numeral, parse, type Json } from "../src/lib/json";

/** As the tree shows it: scalars as they stand. */
function shown(value: Json): unknown {
  if (Array.isArray(value)) return value.map(shown);
  if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, shown(one)]));
  return String(value);
}

test("numbers are shown as they stand in the bytes", () => {
  const sources = ["9007199254740993", "-18446744073709551616", "1.0", "0.10", "1e3", "1E-7", "-0", "0", "12", "0.1", "-3.5"];
  expect(shown(parse(`{"a": [${sources.join(" , ")}], "b": ${sources[0]}}`))).toEqual({ a: sources, b: sources[0] });
  expect(shown(parse("1.0"))).toBe("1.0");
});

test("what looks like a number within a string, or a name, is left alone", () => {
  const text = String.raw`say \"1.0\" and 9007199254740993, \\`;
  expect(parse(`{"1.0": "${text}", "b\\\\": 1.50, "c": "2.0"}`)).toEqual({
    "1.0": 'say "1.0" and 9007199254740993, \\',
    "b\\": new Numeral("1.50"),
    c: "2.0",
  });
});

test("usual numbers are numbers", () => {
  expect(parse('{"a": 1, "b": [2.5, -7]}')).toEqual({ a: 1, b: [2.5, -7] });
});

test("what is no JSON is null", () => {
  for (const json of ["", "{", "[1.0", '"1.0', "1.0.0", "-", "[--1.0]", "01.0"]) expect(parsed(json)).toBeNull();
});

test("a body of megabytes takes no more than a moment", () => {
  const long = "x\\\"1.0 \\\\".repeat(500_000);
  expect((parse(`{"t": 1.0, "long": "${long}"}`) as { long: string }).long.length).toBe(500_000 * 7);
});
