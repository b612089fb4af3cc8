/** Plan windows out of `anthropic-ratelimit-unified-*`: how much of each was used, when. */

import type { LimitPoint } from "./types";

export interface Window {
  /** Such as "5h" or "7d". */
  name: string;
  credential: string | null;
  points: { time: number; used: number }[];
  /** The last that was told. */
  used: number;
  status: string;
  /** Seconds since the epoch; null where it was not told. */
  reset: number | null;
}

const FIELD = /^anthropic-ratelimit-unified-(.+)-utilization$/;

export function windowsOf(points: readonly LimitPoint[]): Window[] {
  const found = new Map<string, Window>();
  for (const { timestamp, credential, limits } of points) {
    for (const [field, value] of Object.entries(limits)) {
      const name = FIELD.exec(field)?.[1];
      const used = Number.parseFloat(value);
      if (!name || !Number.isFinite(used)) continue;
      const key = `${credential ?? ""} ${name}`;
      const window = found.get(key) ?? { name, credential, points: [], used, status: "", reset: null };
      found.set(key, window);
      window.points.push({ time: Date.parse(timestamp) / 1000, used });
      window.used = used;
      window.status = limits[`anthropic-ratelimit-unified-${name}-status`] ?? "";
      window.reset = timeOf(limits[`anthropic-ratelimit-unified-${name}-reset`]);
    }
  }
  return [...found.values()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** Seconds since the epoch, or RFC 3339. */
function timeOf(value: string | undefined): number | null {
  if (!value) return null;
  const time = /^\d+(\.\d+)?$/.test(value) ? Number.parseFloat(value) : Date.parse(value) / 1000;
  return Number.isFinite(time) ? time : null;
}

/** Several series over the times of all of them. */
export function aligned(windows: readonly Window[]): { times: number[]; values: (number | null)[][] } {
  const times = [...new Set(windows.flatMap((window) => window.points.map((point) => point.time)))].sort((a, b) => a - b);
  const values = windows.map((window) => {
    const at = new Map(window.points.map((point) => [point.time, point.used]));
    return times.map((time) => at.get(time) ?? null);
  });
  return { times, values };
}
