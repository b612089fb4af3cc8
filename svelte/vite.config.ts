import { svelte } from "@sveltejs/vite-plugin-svelte";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const PROXY = process.env.CLAUDE_PROXY ?? "http://127.0.0.1:3001";

/** The script in the page is small, and asks for the rest: the browser shall know of it before. */
const known: Plugin = {
  name: "known-from-the-start",
  transformIndexHtml: {
    order: "post",
    handler(_, { bundle = {} }) {
      const page = Object.values(bundle).find((one) => one.type === "chunk" && one.name === "page");
      if (page?.type !== "chunk") return [];
      const files = [page.fileName, ...page.imports.filter((file) => file !== "app.js")];
      return files.map((file) => ({ tag: "link", attrs: { rel: "modulepreload", crossorigin: "", href: `/${file}` }, injectTo: "head" }));
    },
  },
};

export default defineConfig({
  plugins: [svelte(), known],
  build: {
    outDir: "../twisted_proxy/web/static",
    emptyOutDir: true,
    // What understands light-dark() and field-sizing: no older syntax to ship.
    target: "es2023",
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    cssCodeSplit: false,
    modulePreload: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: {
        // Stable names: the bundle is committed, and a change shows as a change of the same files.
        entryFileNames: "app.js",
        chunkFileNames: (chunk) => `${chunk.name.replace(/\.svelte$/, "")}.js`,
        assetFileNames: (asset) => (asset.names[0]?.endsWith(".css") ? "app.css" : "[name][extname]"),
      },
    },
  },
  server: { proxy: { "/api": PROXY, "/livez": PROXY, "/health": PROXY, "/openapi.json": PROXY } },
  // Tests mount components, as a browser does.
  ...(process.env.VITEST ? { resolve: { conditions: ["browser"] } } : {}),
  test: { environment: "jsdom", include: ["tests/**/*.test.ts"] },
});
