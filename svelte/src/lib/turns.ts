/** What changed from one request to the one that follows it. */

import { isObject, list, object, systemOf, text, turnsOf, type Json, type JsonObject, type Turn } from "./content";

export interface Change {
  what: string;
  before: string;
  after: string;
}

export interface TurnDiff {
  /** Parameters, tools, system: what is not the same. */
  changes: Change[];
  /** How many messages both begin with. */
  common: number;
  removed: Turn[];
  added: Turn[];
}

/** As JSON without what may differ between two tellings of the same: cache markers; a list of one plain text for the text. */
export function identity(value: Json): string {
  return JSON.stringify(plain(value));
}

function plain(value: Json): Json {
  if (Array.isArray(value)) {
    const only = value.length === 1 ? value[0] : undefined;
    if (isObject(only) && only.type === "text" && typeof only.text === "string") return only.text;
    return value.map(plain);
  }
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.keys(value)
      .filter((name) => name !== "cache_control")
      .sort()
      .map((name) => [name, plain(value[name] as Json)]),
  );
}

const pretty = (value: Json | undefined) => (value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** A block of Claude Code's that is another with each request, and says nothing to the model. */
const BILLING = "x-anthropic-billing-header";

function systemText(request: JsonObject): string {
  const said = (systemOf(request)?.blocks ?? []).map((block) => text(block.text));
  return said.filter((one) => !one.startsWith(BILLING)).join("\n\n");
}

export function turnDiff(before: JsonObject, after: JsonObject): TurnDiff {
  const changes: Change[] = [];
  const differ = (what: string, old: string, now: string) => {
    if (old !== now) changes.push({ what, before: old, after: now });
  };
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  for (const name of names) {
    // The last of these names the answer before: it is another with each turn.
    if (name === "messages" || name === "system" || name === "tools" || name === "diagnostics") continue;
    if (identity(before[name] ?? null) !== identity(after[name] ?? null)) differ(name, pretty(before[name]), pretty(after[name]));
  }
  differ("system", systemText(before), systemText(after));
  const tools = (request: JsonObject) => new Map(list(request.tools).map((tool) => [text(object(tool).name), tool]));
  const oldTools = tools(before);
  const newTools = tools(after);
  for (const name of new Set([...oldTools.keys(), ...newTools.keys()])) {
    const old = oldTools.get(name);
    const now = newTools.get(name);
    if (identity(old ?? null) !== identity(now ?? null)) differ(`tool ${name}`, pretty(old), pretty(now));
  }

  const oldIds = list(before.messages).map(identity);
  const newIds = list(after.messages).map(identity);
  let common = 0;
  while (common < oldIds.length && common < newIds.length && oldIds[common] === newIds[common]) common += 1;
  return { changes, common, removed: turnsOf(before).slice(common), added: turnsOf(after).slice(common) };
}
