/** The server's HTTP interface: requests, streams, refusals in plain words, and the key. Shows nothing itself. */

import { base64 } from "./audio.js";

const KEY = "moss-audio-key";

const HEADLINES = {
  401: "This server asks for an API key.",
  403: "This key may not do that.",
  404: "This server does not offer that.",
  408: "Sending took too long, and the server gave up.",
  413: "This recording is too large for the server.",
  415: "The server cannot read this kind of file.",
  429: "That was more than the server takes at once.",
  500: "Something went wrong in the server.",
  503: "The server is not ready for requests just now.",
};

/** An answer that is not one: `status` (0 where the server was not reached), `message`, `detail`, `retryAfter` in s. */
export class Refusal extends Error {
  constructor(status, detail = "", retryAfter = 0) {
    super(HEADLINES[status] ?? (status ? "The server refused this request." : "The server cannot be reached."));
    Object.assign(this, { status, detail, retryAfter });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Asked on 401: resolves to true when there is a new key to try. */
let askForKey = async () => false;
export const onKeyNeeded = (ask) => (askForKey = ask);

async function request(path, { body, signal } = {}) {
  for (;;) {
    const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
    const json = body && !(body instanceof FormData);
    if (json) headers["Content-Type"] = "application/json";
    let response;
    try {
      const init = { method: body ? "POST" : "GET", headers, signal, body: json ? JSON.stringify(body) : body };
      response = await fetch(path, init);
    } catch (error) {
      throw error.name === "AbortError" ? error : new Refusal(0, error.message);
    }
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    if (refusal.status !== 401 || !(await askForKey(Boolean(key.get())))) throw refusal;
  }
}

async function refusalOf(response) {
  const answer = await response.json().catch(() => ({}));
  const detail = answer.error?.message ?? (typeof answer.detail === "string" ? answer.detail : "");
  return new Refusal(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
}

/** The JSON objects of a server-sent event stream, up to `[DONE]`. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      buffer = (buffer + (value ?? "")).replaceAll("\r\n", "\n");
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(event.error.status ?? 500, event.error.message);
        yield event;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let models;
/** Names of the models that this server runs. */
export const modelNames = () =>
  (models ??= request("v1/models")
    .then((response) => response.json())
    .then(({ data }) => data.map((model) => model.id))
    .catch((error) => {
      models = undefined;
      throw error;
    }));

/** Resolves when the server takes this browser's key, asking for one where it is needed. */
export const checkKey = () => request("v1/models");

/** A field with several values is a list. */
async function form(file, name, fields = {}) {
  const data = new FormData();
  data.append("model", (await modelNames())[0]);
  for (const [field, values] of Object.entries(fields)) for (const value of [values].flat()) data.append(field, value);
  data.append("file", file, name);
  return data;
}

/** Streams a transcript: yields the server's events; one `transcript.text.done` where it does not stream. */
export async function* transcribe(file, name, signal) {
  const body = await form(file, name, {
    response_format: "verbose_json",
    "timestamp_granularities[]": ["word", "segment"],
    stream: "true",
  });
  const response = await request("v1/audio/transcriptions", { body, signal });
  if (response.headers.get("Content-Type")?.startsWith("text/event-stream")) yield* events(response);
  else yield { type: "transcript.text.done", ...(await response.json()) };
}

/** A typed task's answer, as the server's JSON. */
export async function task(task, options, file, name, signal) {
  const response = await request(`v1/audio/${task}`, { body: await form(file, name, options), signal });
  return response.json();
}

/** Streams an answer about the recording: yields `{ content, reasoning_content }` deltas. */
export async function* chat(file, name, messages, signal) {
  const format = name.split(".").pop().toLowerCase();
  const sound = { type: "input_audio", input_audio: { data: await base64(file), format } };
  const [first, ...rest] = messages.map(({ role, content }) => ({ role, content }));
  const opening = { role: "user", content: [sound, { type: "text", text: first.content }] };
  const body = { model: (await modelNames())[0], messages: [opening, ...rest], stream: true };
  for await (const chunk of events(await request("v1/chat/completions", { body, signal }))) {
    if (chunk.choices?.[0]?.delta) yield chunk.choices[0].delta;
  }
}
