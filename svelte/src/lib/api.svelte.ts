/** The way to the API, and whether this viewer may use it. */

import { address, type Query } from "./address";
import { take } from "./early";
import type { Viewer } from "./types";

/** What the API said instead of an answer; `message` is for people. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

class Access {
  /** Null until the API has said who this is. */
  viewer = $state.raw<Viewer | null>(null);
  refused = $state("");

  async check(): Promise<void> {
    try {
      this.viewer = await getJson<Viewer>("/api/viewer");
      this.refused = "";
    } catch (error) {
      this.refused = error instanceof Error ? error.message : String(error);
    }
  }

  async logIn(password: string): Promise<void> {
    this.viewer = await send<Viewer>("POST", "/api/login", { password });
  }

  async logOut(): Promise<void> {
    await send("POST", "/api/logout");
    await this.check();
  }
}

export const access = new Access();

async function fetched(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    const early = init.method ? null : await take(path);
    response = early ?? (await fetch(path, { ...init, credentials: "same-origin" }));
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "The proxy does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401 && access.viewer && access.viewer.login !== "required") {
    // The session is over.
    access.viewer = { ...access.viewer, login: "required", csrfToken: null };
  }
  throw new ApiError(response.status, await words(response));
}

async function words(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { error?: { message?: string } };
    if (body.error?.message) return body.error.message;
  } catch {
    // Not ours: a balancer's page, or nothing.
  }
  return `The answer was ${response.status} ${response.statusText}.`;
}

export async function getJson<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
  const response = await fetched(address(path, query), signal ? { signal } : {});
  return (await response.json()) as T;
}

export async function getText(path: string, query: Query = {}, signal?: AbortSignal): Promise<string> {
  const response = await fetched(address(path, query), signal ? { signal } : {});
  return response.text();
}

/** What changes something. */
export async function send<T = void>(method: "POST" | "DELETE", path: string, body?: object): Promise<T> {
  const headers = new Headers();
  const token = access.viewer?.csrfToken;
  if (token) headers.set("X-CSRF-Token", token);
  if (body) headers.set("Content-Type", "application/json");
  const response = await fetched(path, { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) });
  return (response.status === 204 ? undefined : await response.json()) as T;
}
