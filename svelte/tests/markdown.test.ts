import { render } from "@testing-library/svelte";
import { beforeAll, expect, test, vi } from "vitest";
import Markdown from "../src/components/Markdown.svelte";
import { safeImage, safeLink, unescape } from "../src/lib/markdown";

beforeAll(() => {
  vi.stubGlobal("IntersectionObserver", class { observe() {} unobserve() {} disconnect() {} });
});

const shown = (text: string) => render(Markdown, { text }).container;

test("what is written as HTML is shown as text", () => {
  const hostile = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    'a <b onclick="x()">b</b> <iframe src="https://e.example"></iframe>',
    "<style>body{display:none}</style>",
    "<svg/onload=alert(1)>",
  ];
  for (const text of hostile) {
    const page = shown(text);
    expect(page.querySelector("script, img, iframe, style, svg, b")).toBeNull();
    expect(page.textContent).toContain("<");
  }
});

test("only web and mail addresses are links, and they open elsewhere without a referrer", () => {
  for (const target of ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "//e.example", "/api/logout", "#/requests", "file:///etc/passwd", "blob:x"]) {
    expect(safeLink(target)).toBeNull();
    expect(shown(`[click](${target})`).querySelector("a")).toBeNull();
  }
  const link = shown("[click](https://e.example/a?b=c)").querySelector("a");
  expect(link?.getAttribute("href")).toBe("https://e.example/a?b=c");
  expect(link?.rel).toBe("noopener noreferrer");
  expect(link?.target).toBe("_blank");
});

test("images elsewhere are links, not loaded; SVG is no image", () => {
  const page = shown("![pixel](https://e.example/pixel.png)");
  expect(page.querySelector("img")).toBeNull();
  expect(page.querySelector("a")?.href).toBe("https://e.example/pixel.png");
  expect(safeImage("data:image/png;base64,iVBORw0KGgo=")).not.toBeNull();
  expect(safeImage("data:image/svg+xml;base64,PHN2Zz4=")).toBeNull();
  expect(safeImage("data:text/html;base64,PHN2Zz4=")).toBeNull();
});

test("Markdown becomes elements", () => {
  const page = shown("# Title\n\nSome *soft* and **strong** `code`.\n\n1. one\n2. two\n   - [x] done\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```ts\nlet x = 1 < 2;\n```\n");
  expect(page.querySelector("h3")?.textContent).toBe("Title");
  expect(page.querySelector("em")?.textContent).toBe("soft");
  expect(page.querySelectorAll("ol > li")).toHaveLength(2);
  expect(page.querySelector("ul > li.task")?.textContent).toContain("done");
  expect(page.querySelector("td")?.textContent).toBe("1");
  expect(page.querySelector("pre")?.textContent).toContain("let x = 1 < 2;");
});

test("character references are read once", () => {
  expect(unescape("a &lt; b &amp;lt; &#x41;&#66; &unknown; &#0;")).toBe("a < b &lt; AB &unknown; &#0;");
});

test("nesting without end is shown, not recursed into", () => {
  expect(shown(`${">".repeat(3000)} deep`).textContent).toContain("deep");
  expect(shown(`${"*a ".repeat(2000)}`).textContent).toContain("a");
});
