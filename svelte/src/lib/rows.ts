/** j and k through links of a page: those with `data-row`. */

import { onKeys } from "./keys";

/** Keys for a page of rows that are links; `back` is where Esc leads. */
export function rowKeys(back?: () => void): () => void {
  const step = (by: number) => () => {
    const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")];
    const at = rows.indexOf(document.activeElement as HTMLElement);
    const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + by))];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  };
  return onKeys({ j: step(1), k: step(-1), ...(back ? { Escape: back } : {}) });
}
