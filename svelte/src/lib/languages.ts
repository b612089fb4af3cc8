/** Which language a code is in, by the word beside it or by the name of its file. */

const NAMES = {
  bash: ["sh", "shell", "zsh", "console"],
  css: ["scss"],
  diff: ["patch"],
  go: ["golang"],
  json: ["jsonc", "jsonl", "json5"],
  python: ["py", "pyi"],
  rust: ["rs"],
  sql: ["postgresql", "sqlite"],
  typescript: ["ts", "tsx", "mts", "cts", "js", "jsx", "mjs", "cjs", "javascript"],
  xml: ["html", "svg", "svelte", "vue", "xhtml"],
  yaml: ["yml"],
} as const;

export type Language = keyof typeof NAMES;

const KNOWN = new Map<string, Language>(
  Object.entries(NAMES).flatMap(([language, others]) => [language, ...others].map((name) => [name, language as Language] as const)),
);

/** Null where no colours are known for it. */
export function languageOf(word: string): Language | null {
  const name = word.trim().split(/[\s,{]/, 1)[0] ?? "";
  return KNOWN.get(name.slice(name.lastIndexOf(".") + 1).toLowerCase()) ?? null;
}
