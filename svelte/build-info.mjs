// Writes BUILD.json beside the bundle: the digest of the source that it was built from.
//
// The digest is SHA-256 over, for each file in the order of its path: path, NUL, length in decimal, NUL, bytes.
// tests/test_site.py reckons it again.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(fileURLToPath(import.meta.url));
const SOURCES = ["index.html", "package.json", "package-lock.json", "vite.config.ts", "svelte.config.js", "tsconfig.json", "public", "src"];

function files(path) {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).flatMap((name) => files(join(path, name)));
}

const digest = createHash("sha256");
const paths = SOURCES.flatMap((name) => files(join(root, name))).map((path) => relative(root, path).split(sep).join("/"));
for (const path of paths.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))) {
  const data = readFileSync(join(root, path));
  digest.update(`${path}\0${data.length}\0`).update(data);
}
const built = { source: digest.digest("hex") };
writeFileSync(join(root, "../twisted_proxy/web/static/BUILD.json"), `${JSON.stringify(built)}\n`);
