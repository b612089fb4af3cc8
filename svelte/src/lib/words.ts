/** How states of a request are called on the page. */

export type Tone = "good" | "warn" | "bad" | "soft";

const VERDICTS: Record<string, [string, Tone]> = {
  complete: ["complete", "good"],
  truncated: ["cut short by the upstream", "bad"],
  silent: ["the upstream fell silent", "bad"],
  client_gone: ["the client left", "warn"],
  client_stalled: ["the client stopped reading", "warn"],
  drained: ["cut by the drain", "bad"],
  cut: ["cut from the dashboard", "warn"],
  failed: ["the upstream failed", "bad"],
  refused: ["refused", "bad"],
  interrupted: ["interrupted: the proxy ended", "bad"],
};

export function verdictWords(verdict: string | null): [string, Tone] {
  if (verdict === null) return ["in flight", "soft"];
  return VERDICTS[verdict] ?? [verdict.replaceAll("_", " "), "warn"];
}

export function statusTone(status: number | null | undefined, verdict: string | null): Tone {
  if (status != null && status >= 400) return "bad";
  // What went well is quiet.
  return verdict === null || verdict === "complete" ? "soft" : verdictWords(verdict)[1];
}

/** What kind of request it is: its agent and class where they are told, else where it went. */
export function kindOf(request: {
  endpoint: string;
  method: string;
  agentType: string | null;
  requestClass: string | null;
  agent: string | null;
}): string {
  const { agentType, requestClass, agent, endpoint, method } = request;
  if (agentType || requestClass) return [agentType, requestClass].filter((part, at, all) => part && all.indexOf(part) === at).join(" · ");
  if (agent) return "subagent";
  return endpoint === "/v1/messages" ? "messages" : `${method === "POST" ? "" : `${method} `}${endpoint.replace(/^\/v1\//, "")}`;
}

export const LINKS = {
  continues: "continues",
  repeats: "repeats",
  forks: "forks from",
  compacts: "compacts",
  threads: "goes on in the thread of",
} as const;
