// OpenAI's Node package against a server: node client.mjs NODE_MODULES BASE_URL KEY FILE. Prints what it got as JSON.
import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, baseURL, apiKey, file] = process.argv.slice(2);
const entry = createRequire(pathToFileURL(`${modules}/x.js`)).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(entry));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const data = readFileSync(file).toString("base64");
const content = [{ type: "input_audio", input_audio: { data, format: "wav" } }, { type: "text", text: "What is said?" }];
const question = { model: "mini", messages: [{ role: "user", content }] };

const answer = await client.chat.completions.create(question);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...question, stream: true })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
}
const transcript = await client.audio.transcriptions.create({
  model: "mini",
  file: createReadStream(file),
  response_format: "verbose_json",
});
const refused = await client.models.retrieve("gpt-9").catch((error) => error.status);

const chat = answer.choices[0].message.content;
console.log(JSON.stringify({ chat, streamed, text: transcript.text, segments: transcript.segments.length, refused }));
