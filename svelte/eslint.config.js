import svelte from "eslint-plugin-svelte";
import { defineConfig } from "eslint/config";
import typescript from "typescript-eslint";

export default defineConfig(
  { ignores: ["node_modules"] },
  // Without types: those are svelte-check's, and would take this a minute.
  typescript.configs.strict,
  typescript.configs.stylistic,
  svelte.configs.recommended,
  {
    files: ["**/*.svelte", "**/*.svelte.ts"],
    languageOptions: { parserOptions: { parser: typescript.parser } },
  },
  {
    rules: {
      // Addresses are fragments: there is no router whose paths they would have to be resolved by.
      "svelte/no-navigation-without-resolve": "off",
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "What a model wrote is text." },
        { property: "outerHTML", message: "What a model wrote is text." },
        { property: "insertAdjacentHTML", message: "What a model wrote is text." },
      ],
      // Those of functions and getters are nobody's state.
      "svelte/prefer-svelte-reactivity": "off",
      // A blank that must stay.
      "svelte/no-useless-mustaches": "off",
      eqeqeq: ["error", "always", { null: "ignore" }],
    },
  },
  {
    files: ["tests/**"],
    rules: { "@typescript-eslint/no-non-null-assertion": "off", "@typescript-eslint/no-empty-function": "off" },
  },
);
