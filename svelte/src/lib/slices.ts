/** Long texts in slices, so that a page mounts what is looked at and nothing freezes. */

export const SLICE = 16_384;

/** Cut at line ends into slices of about `size` characters; a longer line is cut where it is. */
export function byLines(text: string, size = SLICE): string[] {
  const slices: string[] = [];
  for (let start = 0; start < text.length; ) {
    let end = start + size;
    if (end >= text.length) end = text.length;
    else {
      const newline = text.lastIndexOf("\n", end);
      if (newline > start) end = newline + 1;
      else if (isLead(text.charCodeAt(end - 1))) end -= 1;
    }
    slices.push(text.slice(start, end));
    start = end;
  }
  return slices;
}

function isLead(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

/** Cut Markdown at blank lines outside of fenced code, into slices of at least `size` characters where that is possible. */
export function byBlocks(text: string, size = SLICE): string[] {
  if (text.length <= size) return [text];
  const slices: string[] = [];
  let start = 0;
  let fence = "";
  for (let at = 0; at < text.length; ) {
    const newline = text.indexOf("\n", at);
    const end = newline < 0 ? text.length : newline + 1;
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(text.slice(at, Math.min(end, at + 80)))?.[1];
    if (mark && !fence) fence = mark;
    else if (mark && mark[0] === fence[0] && mark.length >= fence.length) fence = "";
    const blank = text.slice(at, Math.min(end, at + 80)).trim() === "" && end - at < 80;
    if (end - start >= size && ((blank && !fence) || end - start >= 4 * size)) {
      slices.push(...byLines(text.slice(start, end), 4 * size));
      start = end;
    }
    at = end;
  }
  if (start < text.length) slices.push(...byLines(text.slice(start), 4 * size));
  return slices;
}
