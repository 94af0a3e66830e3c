// OpenAI's client for JavaScript.

import OpenAI, { toFile } from "openai";

import { andNow, change, hello, model, prompt, question, run, url } from "./cells.mjs";

const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const turns = [{ role: "user", content: hello }];
const tools = [{ type: "image_generation" }];

const chat = async (messages, settings = {}) =>
  (await client.chat.completions.create({ model, messages, ...settings })).choices[0].message;
const draw = async () => (await client.images.generate({ model, prompt })).data[0].b64_json;

await run({
  draw,
  ask: async () => (await chat(turns)).content,
  stream: async () => {
    let said = "";
    for await (const chunk of await client.chat.completions.create({
      model,
      messages: turns,
      stream: true,
    })) {
      said += chunk.choices[0]?.delta?.content ?? "";
    }
    return said;
  },
  edit: async () => {
    const image = await toFile(Buffer.from(await draw(), "base64"), "a.png", { type: "image/png" });
    return (await client.images.edit({ model, image, prompt: change })).data[0].b64_json;
  },
  look: async () => {
    const image = { url: `data:image/png;base64,${await draw()}`, detail: "high" };
    const content = [
      { type: "image_url", image_url: image },
      { type: "text", text: question },
    ];
    return (await chat([{ role: "user", content }])).content;
  },
  talk: async () =>
    (await chat([...turns, await chat(turns), { role: "user", content: andNow }])).content,
  sample: async () =>
    (
      await chat(turns, {
        temperature: 0.7,
        top_p: 0.9,
        seed: 3,
        stop: ["\n\n"],
        max_completion_tokens: 20,
        n: null,
        logit_bias: null,
      })
    ).content,
  respond: async () => (await client.responses.create({ model, input: hello })).output_text,
  respond_streamed: async () => {
    let said = "";
    const events = client.responses.stream({ model, input: hello });
    for await (const event of events) {
      said += event.type === "response.output_text.delta" ? event.delta : "";
    }
    return said === (await events.finalResponse()).output_text ? said : "two texts";
  },
  respond_drawn: async () => {
    const drawn = await client.responses.create({ model, input: prompt, tools });
    const input = [
      { role: "user", content: prompt },
      ...drawn.output,
      { role: "user", content: change },
    ];
    return (await client.responses.create({ model, input, tools })).output[0].result;
  },
});
