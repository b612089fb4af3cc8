import { render } from "@testing-library/svelte";
import { expect, test } from "vitest";
import Code from "../src/components/Code.svelte";
import { piecesOf } from "../src/lib/colours";
import { languageOf, type Language } from "../src/lib/languages";

const whole = (code: string, language: Language) => piecesOf(code, language).map((piece) => piece.text).join("");
const meaning = (code: string, language: Language, text: string) => piecesOf(code, language).find((piece) => piece.text.includes(text))?.meaning;

test("each language is known by its names and its files", () => {
  const words = ["python", "PY", "src/a.py", "ts", "/x/y.tsx", "js title=a", "sh", "yml", "index.html", "Cargo.rs", "patch"];
  expect(words.map(languageOf)).toEqual(["python", "python", "python", "typescript", "typescript", "typescript", "bash", "yaml", "xml", "rust", "diff"]);
  expect(["", "brainf", "README", "a.b/c"].map(languageOf)).toEqual([null, null, null, null]);
});

test("words have their meaning, and nothing of the text is lost", () => {
  const code = 'def f(x):  # why\n    return "a" + str(12)\n';
  expect(whole(code, "python")).toBe(code);
  expect([meaning(code, "python", "def"), meaning(code, "python", "why"), meaning(code, "python", '"a"'), meaning(code, "python", "12")]).toEqual([
    "word",
    "comment",
    "string",
    "number",
  ]);
  expect([meaning("+a\n-b\n", "diff", "+a"), meaning("+a\n-b\n", "diff", "-b")]).toEqual(["added", "removed"]);
  const page = "<style>a { color: red }</style><script>let x = 1</script>";
  expect(whole(page, "xml")).toBe(page);
});

test("no code becomes elements of its own", async () => {
  const code = 'x = "<img src=x onerror=alert(1)>" # <script>alert(1)</script>';
  for (const language of ["python", "html", "bash"]) {
    const { container, findByText, unmount } = render(Code, { text: code, language });
    await findByText((_, element) => element?.tagName === "CODE");
    expect(container.querySelector("code")?.textContent).toBe(code);
    expect(container.querySelector("img, script")).toBeNull();
    unmount();
  }
});

test("a language that is not known, or too much of one, stays as it is", async () => {
  const { container } = render(Code, { text: "x = 1\n".repeat(20_000), language: "python" });
  await new Promise((done) => setTimeout(done, 0));
  expect(container.querySelector("code")).toBeNull();
});
