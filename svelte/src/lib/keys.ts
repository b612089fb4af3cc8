/** Keys of the page. The view that was opened last is asked first. */

export type Keys = Record<string, () => void>;

const layers: Keys[] = [];

/** Act on these keys until the function that is returned is called. */
export function onKeys(keys: Keys): () => void {
  layers.push(keys);
  return () => {
    layers.splice(layers.indexOf(keys), 1);
  };
}

function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

export function handleKey(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") (event.target as HTMLElement).blur();
    return;
  }
  // An open dialog has keys of its own.
  if (document.querySelector("dialog[open]")) return;
  for (let at = layers.length - 1; at >= 0; at -= 1) {
    const act = layers[at]?.[event.key];
    if (act) {
      event.preventDefault();
      act();
      return;
    }
  }
}
