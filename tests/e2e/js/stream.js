// Streams one chat and one response from the server whose address is given, and writes, as JSON, what
// came.

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const question = "What is the capital of France?";
const [{ id: model }] = (await client.models.list()).data;

const chat = { text: "", numChunks: 0, finishReason: null, usage: null };
const chunks = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: question }],
  temperature: 0,
  max_completion_tokens: 24,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const { choices, usage } of chunks) {
  chat.numChunks += 1;
  chat.text += choices[0]?.delta.content ?? "";
  chat.finishReason ??= choices[0]?.finish_reason;
  chat.usage = usage ?? chat.usage;
}

const events = [];
const stream = client.responses.stream({ model, input: question, temperature: 0, max_output_tokens: 24 });
for await (const event of stream) events.push(event);
const { output_text: text } = await stream.finalResponse();

process.stdout.write(JSON.stringify({ chat, events, text }));
