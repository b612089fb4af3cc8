import { flushSync } from "svelte";
import { expect, test, vi } from "vitest";
import { Load } from "../src/lib/load.svelte";
import { started } from "./effects.svelte";

test("an effect that starts a load runs once, and its end aborts it", async () => {
  let asked = 0;
  let signal: AbortSignal | undefined;
  const load = new Load(async (given) => {
    asked += 1;
    signal = given;
    return "there";
  });
  const end = started(load);
  flushSync();
  await vi.waitFor(() => expect(load.value).toBe("there"));
  flushSync();
  expect(asked).toBe(1);
  expect(signal?.aborted).toBe(false);
  end();
  expect(signal?.aborted).toBe(true);
});

test("what fails can be tried again", async () => {
  let fails = true;
  const load = new Load(async () => {
    if (fails) throw new Error("not now");
    return 1;
  });
  await load.start();
  expect(load.problem).toBe("not now");
  fails = false;
  await load.start();
  expect([load.value, load.problem]).toEqual([1, ""]);
});
