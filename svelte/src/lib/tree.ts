/** A session's agents as a tree, and pages of it as one. */

import type { SessionAgent, SessionPrompt, SessionRequest, SessionTree } from "./types";

export interface AgentNode {
  agent: SessionAgent;
  children: AgentNode[];
}

/** Agents below the ones that called them; those whose caller is not there stand at the top. */
export function agentTree(agents: readonly SessionAgent[]): AgentNode[] {
  const nodes = new Map(agents.map((agent) => [agent.agent, { agent, children: [] as AgentNode[] }]));
  const roots: AgentNode[] = [];
  for (const node of nodes.values()) {
    const { agent, parentAgent } = node.agent;
    const parent = agent === null ? undefined : nodes.get(parentAgent);
    if (parent && parent !== node && !isBelow(parent, node, nodes)) parent.children.push(node);
    else roots.push(node);
  }
  return roots;
}

/** Whether the callers of `node` lead to `other`: what a client says need not be a tree. */
function isBelow(node: AgentNode, other: AgentNode, nodes: ReadonlyMap<string | null, AgentNode>): boolean {
  const seen = new Set<AgentNode>();
  for (let at: AgentNode | undefined = node; at && !seen.has(at); at = at.agent.agent === null ? undefined : nodes.get(at.agent.parentAgent)) {
    if (at === other) return true;
    seen.add(at);
  }
  return false;
}

export interface Sum {
  requests: number;
  costNanousd: number | null;
  outputTokens: number;
  from: number;
  to: number;
}

export function sumOf(requests: readonly SessionRequest[]): Sum {
  let cost: number | null = null;
  let output = 0;
  let from = Infinity;
  let to = 0;
  for (const request of requests) {
    if (request.costNanousd !== null) cost = (cost ?? 0) + request.costNanousd;
    output += request.outputTokens ?? 0;
    const start = Date.parse(request.timestamp);
    from = Math.min(from, start);
    to = Math.max(to, start + (request.durationMs ?? 0));
  }
  return { requests: requests.length, costNanousd: cost, outputTokens: output, from, to };
}

/** The prompts of a next page behind those of the pages before: the first of it may go on what was last. */
export function joined(before: readonly SessionPrompt[], page: SessionTree): SessionPrompt[] {
  const out = [...before];
  for (const prompt of page.prompts) {
    const at = out.findIndex((known) => known.prompt === prompt.prompt);
    const known = out[at];
    if (!known) {
      out.push(prompt);
      continue;
    }
    const agents = [...known.agents];
    for (const agent of prompt.agents) {
      const index = agents.findIndex((one) => one.agent === agent.agent);
      const one = agents[index];
      if (one) agents[index] = { ...one, requests: [...one.requests, ...agent.requests] };
      else agents.push(agent);
    }
    out[at] = { ...known, lastActivity: prompt.lastActivity, agents };
  }
  return out;
}
