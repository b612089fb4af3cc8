/** What the API answers: the schemas of openapi.yaml that the page uses, with their names there. */

import type { Json } from "./content";

type Maybe<T> = T | null;

export interface Viewer {
  login: "none" | "required" | "done";
  csrfToken: Maybe<string>;
  version: string;
  recording: "full" | "metadata" | "off";
}

export interface Recording {
  status: "off" | "ok" | "failing";
  problem?: Maybe<string>;
  recorded?: number;
  behind_bytes?: number;
  spool_bytes?: number;
  lost_bodies?: number;
  lost_exchanges?: number;
}

export interface Status {
  inFlight: number;
  draining: boolean;
  drainSecondsLeft: Maybe<number>;
  recording: Recording;
  now: string;
}

export interface Usages {
  inputTokens: Maybe<number>;
  outputTokens: Maybe<number>;
  cacheReadTokens: Maybe<number>;
  cacheWrite5mTokens: Maybe<number>;
  cacheWrite1hTokens: Maybe<number>;
}

export type Link = "continues" | "repeats" | "forks" | "compacts" | "threads";

export interface RequestSummary {
  requestId: string;
  timestamp: string;
  method: string;
  endpoint: string;
  model?: string;
  originalModel?: string;
  userAgent: string;
  response?: { statusCode: number; responseTime: number; isStreaming: boolean; completedAt: string };
  verdict: Maybe<string>;
  stream: Maybe<boolean>;
  demoted: boolean;
  provider: Maybe<string>;
  session: Maybe<string>;
  prompt: Maybe<string>;
  agent: Maybe<string>;
  parentAgent: Maybe<string>;
  agentType: Maybe<string>;
  requestClass: Maybe<string>;
  conversation: Maybe<string>;
  parent: Maybe<string>;
  link: Maybe<Link>;
  messages: Maybe<number>;
  requestBytes: number;
  responseBytes: number;
  stopReason: Maybe<string>;
  usage: Usages;
  costNanousd: Maybe<number>;
  costIsPartial: boolean;
  ttftMs: Maybe<number>;
  tokensPerSecond: Maybe<number>;
  error: Maybe<{ type: string; message: Maybe<string> }>;
  lost: Maybe<string>;
  snippet?: Maybe<string>;
}

export interface RequestPage {
  requests: RequestSummary[];
  total?: number;
  totalIsAtLeast?: boolean;
  nextCursor: Maybe<string>;
}

export interface Header {
  name: string;
  value: string;
}

export type Role = "request" | "forwarded" | "received" | "answer" | "message";

export interface BodyInfo {
  role: Role;
  size: number;
  contentType: Maybe<string>;
  contentEncoding: Maybe<string>;
}

export interface Timings {
  bodyReadUs: Maybe<number>;
  connectedUs: Maybe<number>;
  headersUs: Maybe<number>;
  firstEventUs: Maybe<number>;
  lastByteUs: Maybe<number>;
}

export interface RequestDetail extends RequestSummary {
  query: Maybe<string>;
  client: Maybe<string>;
  instance: string;
  credential: Maybe<string>;
  upstreamRequestId: Maybe<string>;
  messageId: Maybe<string>;
  timings: Timings;
  requestHeaders: Header[];
  responseHeaders: Header[];
  rateLimits: Maybe<Record<string, string>>;
  rawUsage: Maybe<Record<string, Json>>;
  bodies: BodyInfo[];
  followers: string[];
}

export interface StreamEvent {
  us: Maybe<number>;
  event: string;
  detail: Maybe<string>;
  index?: Maybe<number>;
  offset: number;
  length: number;
}

export interface EventPage {
  events: StreamEvent[];
  nextCursor: Maybe<string>;
  total: number;
  of: "client" | "upstream";
}

export interface Divergence {
  kind: "appended" | "changed" | "removed" | "identical" | "model";
  path: Maybe<string>;
  role?: Maybe<string>;
  byte: Maybe<number>;
  commonBytes: number;
  before: Maybe<string>;
  after: Maybe<string>;
  parameters: string[];
}

export interface CacheReport {
  requestId: string;
  usage: Usages;
  previous: Maybe<{ requestId: string; timestamp: string; usage: Usages }>;
  link: Maybe<Link>;
  expectedTokens: Maybe<number>;
  missedTokens: Maybe<number>;
  extraCostNanousd: Maybe<number>;
  missReason: Json;
  divergence: Maybe<Divergence>;
}

export interface CacheBreak {
  request: RequestSummary;
  previous: string;
  secondsBetween: number;
  expectedTokens: number;
  missedTokens: number;
  extraCostNanousd: Maybe<number>;
}

export interface CacheBreakPage {
  breaks: CacheBreak[];
  nextCursor: Maybe<string>;
}

export interface LiveBlock {
  index: number;
  kind: string;
  name: Maybe<string>;
  text: string;
}

export type Phase = "receiving" | "waiting" | "answering";

export interface Flight {
  requestId: string;
  timestamp: string;
  ageMs: number;
  method: string;
  endpoint: string;
  model: Maybe<string>;
  originalModel: Maybe<string>;
  provider: Maybe<string>;
  session: Maybe<string>;
  prompt: Maybe<string>;
  agent: Maybe<string>;
  parentAgent: Maybe<string>;
  agentType: Maybe<string>;
  requestClass: Maybe<string>;
  stream: Maybe<boolean>;
  demoted: boolean;
  phase: Phase;
  status: Maybe<number>;
  ttftMs: Maybe<number>;
  requestBytes: number;
  responseBytes: number;
  outputTokens: Maybe<number>;
  tokensPerSecond: Maybe<number>;
  textIsPartial: boolean;
  blocks: LiveBlock[];
}

export interface LiveText extends LiveBlock {
  requestId: string;
}

export type LiveNumbers = Pick<
  Flight,
  "requestId" | "ageMs" | "phase" | "status" | "ttftMs" | "responseBytes" | "outputTokens" | "tokensPerSecond"
>;

export interface ConversationSummary {
  id: string;
  source: "recorded" | "transcript";
  requestCount: number;
  startTime: string;
  lastActivity: string;
  duration: number;
  firstMessage: string;
  projectName: string;
  session: Maybe<string>;
  agent?: Maybe<string>;
  model?: Maybe<string>;
  costNanousd?: Maybe<number>;
  damagedLines?: number;
}

export interface ConversationPage {
  conversations: ConversationSummary[];
  nextCursor: Maybe<string>;
  problems: string[];
}

export interface TranscriptMessage {
  isSidechain: boolean;
  type: string;
  message: Json;
  uuid: string;
  timestamp: string;
  tooLarge?: boolean;
}

export interface Transcript {
  source: "transcript";
  sessionId: string;
  projectPath: string;
  projectName: string;
  messages: TranscriptMessage[];
  startTime: string;
  endTime: string;
  messageCount: number;
  damagedLines: number;
  truncated: boolean;
  nextCursor: Maybe<string>;
}

export interface RecordedConversation {
  source: "recorded";
  id: string;
  session: Maybe<string>;
  requests: RequestSummary[];
  requestCount: number;
  startTime: string;
  endTime: string;
  costNanousd: Maybe<number>;
  costIsPartial: boolean;
  nextCursor: Maybe<string>;
}

export interface Totals {
  requests: number;
  errors: number;
  inFlight: number;
  inputTokens: number;
  outputTokens: number;
  cacheReadTokens: number;
  cacheWrite5mTokens: number;
  cacheWrite1hTokens: number;
  costNanousd: number;
  costIsPartial: boolean;
  unpriced: number;
}

export interface SessionSummary {
  session: string;
  startTime: string;
  lastActivity: string;
  prompts: number;
  agents: number;
  models: string[];
  totals: Totals;
  project: Maybe<string>;
}

export interface SessionPage {
  sessions: SessionSummary[];
  nextCursor: Maybe<string>;
}

export interface SessionRequest {
  requestId: string;
  timestamp: string;
  durationMs: Maybe<number>;
  ttftMs: Maybe<number>;
  model: Maybe<string>;
  status: Maybe<number>;
  verdict: Maybe<string>;
  requestClass: Maybe<string>;
  conversation: Maybe<string>;
  parent: Maybe<string>;
  link: Maybe<Link>;
  stopReason: Maybe<string>;
  inputTokens: Maybe<number>;
  outputTokens: Maybe<number>;
  cacheReadTokens: Maybe<number>;
  cacheWriteTokens: Maybe<number>;
  costNanousd: Maybe<number>;
}

export interface SessionAgent {
  agent: Maybe<string>;
  parentAgent: Maybe<string>;
  agentType: Maybe<string>;
  requests: SessionRequest[];
}

export interface SessionPrompt {
  prompt: Maybe<string>;
  startTime: string;
  lastActivity: string;
  agents: SessionAgent[];
}

export interface SessionTree {
  session: string;
  startTime: string;
  lastActivity: string;
  project: Maybe<string>;
  totals: Totals;
  prompts: SessionPrompt[];
  nextCursor: Maybe<string>;
}

export interface UsageSeries {
  key: Maybe<string>;
  totals: Totals;
  requests: number[];
  errors: number[];
  inputTokens: number[];
  outputTokens: number[];
  cacheReadTokens: number[];
  cacheWriteTokens: number[];
  costNanousd: number[];
}

export interface Usage {
  since: string;
  until: string;
  bucket: number;
  by: string;
  times: number[];
  series: UsageSeries[];
  totals: Totals;
}

export interface Percentiles {
  p50: Maybe<number>[];
  p90: Maybe<number>[];
  p99: Maybe<number>[];
}

export interface Speed {
  times: number[];
  ttftMs: Percentiles;
  tokensPerSecond: Percentiles;
  counted: number;
}

export interface LimitPoint {
  timestamp: string;
  credential: Maybe<string>;
  provider: Maybe<string>;
  limits: Record<string, string>;
}

export interface Limits {
  points: LimitPoint[];
}
