// The AI SDK; its default OpenAI model uses responses, and `chat` uses chat completions.

import { createOpenAI } from "@ai-sdk/openai";
import { generateImage, generateText, streamText } from "ai";

import { andNow, change, hello, model, prompt, question, run, url } from "./cells.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const openai = createOpenAI({ baseURL: url, apiKey: "none" });
const chat = openai.chat(model);
const responses = openai(model);
const artist = { image_generation: openai.tools.imageGeneration({ outputFormat: "png" }) };
const turn = (content) => ({ role: "user", content });

const text = (settings) => generateText({ maxRetries: 0, ...settings });
const image = async (said) =>
  (await generateImage({ model: openai.image(model), prompt: said, maxRetries: 0 })).image.base64;
const draw = () => image(prompt);
const whole = async (which) => {
  let said = "";
  const failures = [];
  const onError = ({ error }) => failures.push(error);
  const answer = streamText({ model: which, prompt: hello, maxRetries: 0, onError });
  for await (const piece of answer.textStream) said += piece;
  if (failures.length) throw failures[0];
  return said;
};

await run({
  draw,
  ask: async () => (await text({ model: chat, prompt: hello })).text,
  stream: () => whole(chat),
  edit: async () => image({ text: change, images: [Buffer.from(await draw(), "base64")] }),
  look: async () => {
    const parts = [
      { type: "text", text: question },
      { type: "image", image: await draw() },
    ];
    return (await text({ model: responses, messages: [turn(parts)] })).text;
  },
  talk: async () => {
    let last;
    for (const which of [chat, responses]) {
      const first = await text({ model: which, messages: [turn(hello)] });
      const messages = [turn(hello), ...first.response.messages, turn(andNow)];
      last = (await text({ model: which, messages })).text;
    }
    return last;
  },
  sample: async () => {
    const settings = { temperature: 0.7, topP: 0.9, seed: 3, maxOutputTokens: 20 };
    const instructions = { system: "Be short.", stopSequences: ["\n\n"] };
    return (await text({ model: chat, prompt: hello, ...instructions, ...settings })).text;
  },
  respond: async () => (await text({ model: responses, prompt: hello })).text,
  respond_streamed: () => whole(responses),
  respond_drawn: async () => {
    const first = await text({ model: responses, messages: [turn(prompt)], tools: artist });
    const messages = [turn(prompt), ...first.response.messages, turn(change)];
    const second = await text({ model: responses, messages, tools: artist });
    return second.toolResults[0].output.result;
  },
});
