/**
 * Markdown as tokens, for components that make text nodes of them. No HTML is made on the way: what stands in a text as
 * HTML is shown as the text that it is.
 */

import { Lexer, type Token } from "marked";

export type { Token };

/** Deeper than this, a token is shown as its source. */
export const DEPTH = 16;

const LEXER = { gfm: true, breaks: false };

export function tokens(source: string): Token[] {
  try {
    return new Lexer(LEXER).lex(source);
  } catch {
    // Nested too deep for the lexer's recursion: the source says it as well.
    return [{ type: "text", raw: source, text: source }];
  }
}

const LINKS = new Set(["http:", "https:", "mailto:"]);

/** Where a link may lead: an absolute web or mail address. Anything else is no link. */
export function safeLink(target: string): string | null {
  try {
    const url = new URL(target);
    return LINKS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const IMAGE = /^data:image\/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+$/;

/** An image that shows itself without asking anyone. */
export function safeImage(target: string): string | null {
  return IMAGE.test(target) ? target : null;
}

const NAMED: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** Character references of a text token, which the lexer leaves as they are. */
export function unescape(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,4}));/gi, (all, decimal, hex, name: string | undefined) => {
    if (name) return NAMED[name.toLowerCase()] ?? all;
    const point = decimal ? Number.parseInt(decimal, 10) : Number.parseInt(hex, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : all;
  });
}
