// Drives the official Node SDK as tests/sdk_runner.py drives the Python ones: a call a line comes in, what it showed
// goes out. The scenarios have the same names, parameters and results.

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { gzipSync } from "node:zlib";

import Anthropic, { toFile } from "@anthropic-ai/sdk";
import { VERSION } from "@anthropic-ai/sdk/version";

const TOOLS = [
  {
    name: "get_weather",
    description: "The weather.",
    input_schema: { type: "object", properties: { city: { type: "string" } } },
  },
];
const QUESTION = [{ role: "user", content: "How is the weather in Zürich? 🌦️" }];

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function release(controlUrl, gate) {
  const response = await fetch(`${controlUrl}/release?gate=${gate}`, { method: "POST" });
  if (!response.ok) throw new Error(`the gate ${gate} does not open: ${response.status}`);
  await response.arrayBuffer();
}

function request(scenario, { tools = false } = {}) {
  return {
    model: `standin-${scenario}`,
    max_tokens: 1000,
    messages: QUESTION,
    ...(tools ? { tools: TOOLS } : {}),
  };
}

function family(error) {
  const names = [];
  for (let each = error.constructor; each && each !== Error && each.name; each = Object.getPrototypeOf(each)) {
    names.push(each._errorName ?? each.name);
  }
  return names.sort();
}

function described(error) {
  return {
    class: error.name,
    family: family(error),
    status: error.status ?? null,
    type: error.type ?? null,
    request_id: error.requestID ?? null,
    body: error.error ?? null,
  };
}

function headerLines(headers) {
  return [...headers.entries()].map(([name, value]) => [name.toLowerCase(), value]);
}

class Scenarios {
  constructor(baseUrl, controlUrl) {
    this.baseUrl = baseUrl;
    this.controlUrl = controlUrl;
  }

  client({ retries = 0, timeout = 30, ...credential } = { }) {
    const key = Object.keys(credential).length ? credential : { apiKey: "sk-ant-stand-in" };
    return new Anthropic({ baseURL: this.baseUrl, maxRetries: retries, timeout: timeout * 1000, ...key });
  }

  async create({ scenario, retries = 0, timeout = 30, more = {} }) {
    const message = await this.client({ retries, timeout }).messages.create({ ...request(scenario), ...more });
    return { message, request_id: message._request_id };
  }

  async stream({ scenario, retries = 0, timeout = 30 }) {
    const stream = this.client({ retries, timeout }).messages.stream(request(scenario));
    const events = [];
    for await (const event of stream) events.push(event.type);
    return { events, message: await stream.finalMessage(), request_id: stream.request_id };
  }

  async raw_events({ scenario }) {
    const stream = await this.client().messages.create({ ...request(scenario), stream: true });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events };
  }

  async raw_response({ scenario, stream = false }) {
    const response = await this.client().messages.create({ ...request(scenario), stream }).asResponse();
    const body = Buffer.from(await response.arrayBuffer());
    return {
      status: response.status,
      headers: headerLines(response.headers),
      length: body.length,
      sha256: sha256(body),
    };
  }

  async paced({ scenario, gates }) {
    const stream = await this.client().messages.create({ ...request(scenario), stream: true });
    const events = [];
    const waiting = [...gates];
    for await (const event of stream) {
      events.push(event.type);
      if (waiting.length) await release(this.controlUrl, waiting.shift());
    }
    return { events };
  }

  async conversation({ stream }) {
    const messages = [...QUESTION];
    const replies = [];
    const client = this.client();
    for (let turn = 0; turn < 4; turn++) {
      const body = { ...request("auto", { tools: true }), messages };
      const reply = stream ? await client.messages.stream(body).finalMessage() : await client.messages.create(body);
      replies.push(reply);
      if (reply.stop_reason !== "tool_use") break;
      const calls = reply.content
        .filter((block) => block.type === "tool_use")
        .map(({ type, id, name, input }) => ({ type, id, name, input }));
      messages.push(
        { role: "assistant", content: calls },
        {
          role: "user",
          content: calls.map(({ id, input }) => ({
            type: "tool_result",
            tool_use_id: id,
            content: JSON.stringify(input),
          })),
        },
      );
    }
    return { replies };
  }

  async beta() {
    const betas = ["context-1m-2025-08-07", "message-threads-2026-08-12"];
    return { message: await this.client().beta.messages.create({ ...request("auto"), betas }) };
  }

  async bearer() {
    const client = this.client({ apiKey: null, authToken: "token-stand-in" });
    return { message: await client.messages.create(request("auto")) };
  }

  async count_tokens() {
    return this.client().messages.countTokens({ model: "claude-opus-4-7", messages: QUESTION });
  }

  async models() {
    const client = this.client();
    const all = [];
    for await (const model of client.models.list({ limit: 2 })) all.push(model);
    return { all, one: await client.models.retrieve("claude-opus-4-7") };
  }

  async files({ size }) {
    const content = Buffer.alloc(size, Buffer.from(Array.from({ length: 256 }, (_, index) => index)));
    const { files } = this.client().beta;
    const file = await toFile(content, "upload.bin", { type: "application/octet-stream" });
    const uploaded = await files.upload({ file });
    const download = await files.download(uploaded.id);
    const downloaded = Buffer.from(await download.arrayBuffer());
    return {
      uploaded,
      metadata: await files.retrieveMetadata(uploaded.id),
      download: [downloaded.length, sha256(downloaded)],
      deleted: await files.delete(uploaded.id),
    };
  }

  async batches() {
    const { batches } = this.client().messages;
    const options = { headers: { "x-standin-base": this.baseUrl } };
    const made = await batches.create({ requests: [{ custom_id: "request-0", params: request("auto") }] }, options);
    const results = [];
    for await (const each of await batches.results(made.id, {}, options)) results.push(each);
    return { made, results };
  }

  async compressed_request() {
    const body = gzipSync(JSON.stringify(request("auto")));
    const headers = { "Content-Encoding": "gzip", "Content-Type": "application/json" };
    return this.client().post("/v1/echo", { body, headers });
  }

  async leave({ scenario, events }) {
    const stream = await this.client().messages.create({ ...request(scenario), stream: true });
    const seen = [];
    for await (const event of stream) {
      seen.push(event.type);
      if (seen.length === events) break;
    }
    return { events: seen };
  }

  async many({ scenario, count, gate }) {
    const client = this.client();
    let begun = 0;
    const one = async (number) => {
      const messages = [{ role: "user", content: `Stream ${number}` }];
      const stream = client.messages.stream({ ...request(scenario), messages });
      let text = "";
      let first = true;
      for await (const event of stream) {
        if (first) {
          first = false;
          begun += 1;
          if (begun === count) await release(this.controlUrl, gate);
        }
        if (event.type === "content_block_delta" && event.delta.type === "text_delta") text += event.delta.text;
      }
      const final = await stream.finalMessage();
      return `${final.id} ${final.stop_reason} ${text}`;
    };
    return { streams: await Promise.all(Array.from({ length: count }, (_, number) => one(number))) };
  }

  async truncations({ scenarios, stream = true }) {
    const client = this.client();
    const raised = new Set();
    const successes = [];
    const waiting = [...scenarios];
    const worker = async () => {
      while (waiting.length) {
        const scenario = waiting.shift();
        try {
          if (stream) await client.messages.stream(request(scenario)).finalMessage();
          else await client.messages.create(request(scenario));
          successes.push(scenario);
        } catch (error) {
          raised.add(error.name);
        }
      }
    };
    await Promise.all(Array.from({ length: 16 }, worker));
    return { successes, raised: [...raised].sort() };
  }
}

console.log(`READY ${VERSION}`);
for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  const player = new Scenarios(call.base_url, call.control_url);
  let result;
  try {
    result = { value: await player[call.scenario](call.arguments) };
  } catch (error) {
    // Errors of the SDK are what is to be seen; anything else is a mistake, here or in the SDK.
    result = error instanceof Anthropic.AnthropicError ? { raised: described(error) } : { crashed: error.stack };
  }
  console.log("RESULT " + JSON.stringify(result).replaceAll(call.base_url, "BASE"));
}
