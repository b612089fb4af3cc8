/** Which words of a code have which meaning: a part of its own, loaded when the first code is shown. */

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import type { Language } from "./languages";

export type Meaning = "comment" | "string" | "number" | "word" | "name" | "added" | "removed" | "";

/** A run of text. */
export interface Piece {
  text: string;
  meaning: Meaning;
}

const MEANINGS: Record<string, Meaning> = {
  comment: "comment",
  quote: "comment",
  doctag: "comment",
  string: "string",
  regexp: "string",
  char: "string",
  number: "number",
  literal: "number",
  symbol: "number",
  keyword: "word",
  built_in: "word",
  type: "word",
  "selector-tag": "word",
  "template-tag": "word",
  meta: "word",
  title: "name",
  attr: "name",
  attribute: "name",
  property: "name",
  name: "name",
  section: "name",
  "selector-class": "name",
  "selector-id": "name",
  addition: "added",
  deletion: "removed",
};

/** Takes what the highlighter finds as runs of text: never as HTML, which what a model wrote must not become. */
class Pieces {
  readonly found: Piece[] = [];
  readonly #within: Meaning[] = [""];

  addText(text: string): void {
    if (!text) return;
    const meaning = this.#within.at(-1) ?? "";
    const last = this.found.at(-1);
    if (last?.meaning === meaning) last.text += text;
    else this.found.push({ text, meaning });
  }

  startScope(name: string): void {
    // A scope within another, of which nothing is known, is a part of that one.
    this.#within.push(MEANINGS[name] ?? MEANINGS[name.split(".")[0] ?? ""] ?? this.#within.at(-1) ?? "");
  }

  endScope(): void {
    this.#within.pop();
  }

  openNode(name: string): void {
    this.startScope(name);
  }

  closeNode(): void {
    this.endScope();
  }

  __addSublanguage(other: Pieces): void {
    for (const { text, meaning } of other.found) {
      this.#within.push(meaning);
      this.addText(text);
      this.#within.pop();
    }
  }

  finalize(): void {
    // Nothing is held back.
  }

  toHTML(): string {
    return "";
  }
}

for (const [name, language] of Object.entries({ bash, css, diff, go, json, python, rust, sql, typescript, xml, yaml })) {
  hljs.registerLanguage(name, language);
}
// Its type is not exported: what it is given is what its own emitter has.
hljs.configure({ __emitter: Pieces } as unknown as Parameters<typeof hljs.configure>[0]);

export function piecesOf(code: string, language: Language): Piece[] {
  const { _emitter: pieces } = hljs.highlight(code, { language, ignoreIllegals: true });
  return (pieces as unknown as Pieces).found;
}
