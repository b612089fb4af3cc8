/**
 * What stands in a request and an answer of the Messages API, as far as the page knows it.
 *
 * It comes from clients and models: nothing here may be taken for granted, so every reader checks what it reads.
 */

import { Numeral, parse, type Json } from "./json";

export type { Json };
export type JsonObject = Record<string, Json>;

export interface Turn {
  role: string;
  blocks: JsonObject[];
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Numeral);
}

export function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

export function object(value: unknown): JsonObject {
  return isObject(value) ? value : {};
}

export function list(value: unknown): Json[] {
  return Array.isArray(value) ? value : [];
}

/** `content` is a text, or a list of blocks. */
export function blocksOf(content: unknown): JsonObject[] {
  if (typeof content === "string") return [{ type: "text", text: content }];
  return list(content).map((block) => (isObject(block) ? block : { type: "text", text: String(block) }));
}

export function turnsOf(request: JsonObject): Turn[] {
  return list(request.messages).map((message) => turnOf(object(message)));
}

/** A message of either API as a turn. */
export function turnOf(message: JsonObject): Turn {
  const { role, content, tool_calls, tool_call_id } = message;
  const name = text(role) || "unknown";
  // OpenAI's words for a tool's result and for calls.
  if (name === "tool") return { role: "user", blocks: [{ type: "tool_result", tool_use_id: tool_call_id ?? "", content: content ?? "" }] };
  const blocks = content == null ? [] : blocksOf(content);
  for (const call of list(tool_calls)) {
    const { id, function: called } = object(call);
    const { name: tool, arguments: input } = object(called);
    blocks.push({ type: "tool_use", id: id ?? "", name: tool ?? "", input: parsed(text(input)) ?? { arguments: input ?? "" } });
  }
  return { role: name, blocks };
}

/** The turn that an answer is: a message, or a chat completion. */
export function answerOf(answer: JsonObject): Turn | null {
  const choice = object(list(answer.choices)[0]);
  if (isObject(choice.message)) return turnOf(choice.message);
  return "content" in answer ? turnOf({ role: "assistant", ...answer }) : null;
}

/** JSON, or null where it is none. */
export function parsed(json: string): Json {
  try {
    return parse(json);
  } catch {
    return null;
  }
}

/** The system prompt as a turn; null where there is none. */
export function systemOf(request: JsonObject): Turn | null {
  const blocks = request.system == null ? [] : blocksOf(request.system);
  return blocks.length ? { role: "system", blocks } : null;
}

/** The results of tool calls by the id of the call. */
export type Results = ReadonlyMap<string, JsonObject>;

export function resultsOf(turns: readonly Turn[]): Results {
  const found = new Map<string, JsonObject>();
  for (const turn of turns)
    for (const block of turn.blocks) {
      const call = text(block.tool_use_id);
      if (call) found.set(call, block);
    }
  return found;
}

export function callsOf(turns: readonly Turn[]): ReadonlySet<string> {
  const found = new Set<string>();
  for (const turn of turns)
    for (const block of turn.blocks) if (isCall(block)) found.add(text(block.id));
  return found;
}

export function isCall(block: JsonObject): boolean {
  return /(^|_)tool_use$/.test(text(block.type));
}

export function isResult(block: JsonObject): boolean {
  return text(block.tool_use_id) !== "";
}

/** A line that says what a tool call is about. */
export function callTitle(name: string, input: JsonObject): string {
  const said =
    input.description ?? input.file_path ?? input.path ?? input.notebook_path ?? input.command ?? input.pattern ?? input.url ?? input.query;
  const line = text(said).split("\n", 1)[0] ?? "";
  return line.length > 160 ? `${line.slice(0, 160)}…` : line || name;
}

export interface Edit {
  before: string;
  after: string;
}

/** The edits that a call of an editing tool asks for; none if it is no such call. */
export function editsOf(input: JsonObject): Edit[] {
  const edits = Array.isArray(input.edits) ? input.edits : [input];
  return edits.flatMap((edit) => {
    const { old_string, new_string, old_str, new_str } = object(edit);
    const before = old_string ?? old_str;
    const after = new_string ?? new_str;
    return typeof before === "string" && typeof after === "string" ? [{ before, after }] : [];
  });
}

export interface Todo {
  text: string;
  status: string;
}

export function todosOf(input: JsonObject): Todo[] {
  return list(input.todos).map((todo) => {
    const { content, subject, status } = object(todo);
    return { text: text(content) || text(subject), status: text(status) };
  });
}
