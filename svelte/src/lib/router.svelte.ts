/**
 * Addresses: `#/view/id?name=value`. All state that a shared link should carry is in them.
 */

export interface Route {
  /** The first segment; "" is the start. */
  view: string;
  /** The segments after it, decoded. */
  rest: string[];
  query: URLSearchParams;
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#?\/?/, "").split("?", 2);
  const [view = "", ...rest] = path.split("/").map(decoded);
  return { view, rest: rest.filter((segment) => segment !== ""), query: new URLSearchParams(query) };
}

export type Values = Record<string, string | number | null | undefined>;

/** The address of a view; values that are null or empty are left out. */
export function href(view: string, rest: readonly string[] = [], values: Values = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value != null && value !== "") query.set(name, String(value));
  const path = [view, ...rest].map(encodeURIComponent).join("/");
  const text = query.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

class Router {
  route = $state.raw<Route>(parse(location.hash));

  constructor() {
    addEventListener("hashchange", () => {
      this.route = parse(location.hash);
    });
  }

  go(address: string): void {
    location.hash = address.replace(/^#/, "");
  }

  /** Change the address without a step in the history: what is typed into a search field. */
  replace(address: string): void {
    history.replaceState(null, "", address);
    this.route = parse(address);
  }
}

export const router = new Router();
