/** Addresses of the API. */

export type Query = Record<string, string | number | boolean | null | undefined>;

/** A path with its query; values that are null or empty are left out. */
export function address(path: string, query: Query = {}): string {
  const values = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value != null && value !== "") values.set(name, String(value));
  const text = values.toString();
  return text ? `${path}?${text}` : path;
}
