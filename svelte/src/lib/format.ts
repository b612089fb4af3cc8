/** Numbers, times and money as words. Every function takes `null` for "not known" and says "–". */

export const NOTHING = "–";

type Maybe<T> = T | null | undefined;

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function count(n: Maybe<number>): string {
  return n == null ? NOTHING : whole.format(n);
}

/** 1234 → "1.2k", 1234567 → "1.2M". */
export function short(n: Maybe<number>): string {
  if (n == null) return NOTHING;
  const size = Math.abs(n);
  if (size < 1000) return String(Math.round(n));
  if (size < 9_950) return `${(n / 1000).toFixed(1)}k`;
  if (size < 999_500) return `${Math.round(n / 1000)}k`;
  if (size < 9_950_000) return `${(n / 1e6).toFixed(1)}M`;
  if (size < 999_500_000) return `${Math.round(n / 1e6)}M`;
  return `${(n / 1e9).toFixed(1)}G`;
}

export function bytes(n: Maybe<number>): string {
  if (n == null) return NOTHING;
  if (n < 1000) return `${n} B`;
  if (n < 1e6) return `${(n / 1000).toFixed(n < 9_950 ? 1 : 0)} kB`;
  if (n < 1e9) return `${(n / 1e6).toFixed(1)} MB`;
  return `${(n / 1e9).toFixed(1)} GB`;
}

/** Microseconds. */
export function duration(us: Maybe<number>): string {
  if (us == null) return NOTHING;
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 10_000) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 1_000_000) return `${Math.round(us / 1000)} ms`;
  if (us < 60_000_000) return `${(us / 1e6).toFixed(us < 9_950_000 ? 2 : 1)} s`;
  const seconds = Math.round(us / 1e6);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** 10⁻⁹ US dollars; with `partial` a lower bound. */
export function money(nanousd: Maybe<number>, partial = false): string {
  if (nanousd == null) return NOTHING;
  const dollars = nanousd / 1e9;
  const digits = dollars === 0 ? 2 : dollars < 0.01 ? 4 : dollars < 1 ? 3 : 2;
  return `${partial ? "≥ " : ""}$${dollars.toFixed(digits)}`;
}

export function percent(part: Maybe<number>, of: Maybe<number>): string {
  if (part == null || !of) return NOTHING;
  const share = (100 * part) / of;
  return `${share > 0 && share < 1 ? share.toFixed(1) : Math.round(share)} %`;
}

const timeOfDay = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayAndTime = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
});
const everything = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
});

/** Milliseconds since the epoch: the time of day for today, day and time for earlier. */
export function moment(ms: number, now = Date.now()): string {
  return new Date(ms).toDateString() === new Date(now).toDateString() ? timeOfDay.format(ms) : dayAndTime.format(ms);
}

export function fullTime(ms: number): string {
  return everything.format(ms);
}

/** "claude-opus-4-5-20260101" → "opus-4-5". */
export function modelName(model: Maybe<string>): string {
  return model ? model.replace(/^claude-/, "").replace(/-20\d{6}$/, "") : NOTHING;
}

/** The last digits of an id: those of a UUIDv7 that differ between neighbours. */
export function tail(id: Maybe<string>, digits = 6): string {
  return id ? id.slice(-digits) : NOTHING;
}
