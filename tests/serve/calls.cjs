// Calls of the official JavaScript SDK; prints what came of them as JSON. Usage: node calls.cjs SCENARIO
const OpenAI = require("openai");

const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });

const chat = (text, more = {}, options = {}, by = client) =>
  by.chat.completions.create({ model: "m", messages: [{ role: "user", content: text }], ...more }, options);

async function told(call) {
  try {
    await call;
    return null;
  } catch (error) {
    const kinds = ["BadRequestError", "AuthenticationError", "NotFoundError", "RateLimitError"];
    return {
      kind: kinds.find((name) => error instanceof OpenAI[name]) ?? error.constructor.name,
      status: error.status,
      message: error.message,
      param: error.param,
      requestId: error.requestID,
    };
  }
}

const scenarios = {
  async calls() {
    const [answer, embedding, response, models] = await Promise.all([
      chat("Hello"),
      client.embeddings.create({ model: "m", input: ["Hello", "World"], dimensions: 3 }),
      client.responses.create({ model: "m", input: "Hello" }),
      client.models.list(),
    ]);
    return {
      chat: answer.choices[0].message.content,
      chatRequestId: answer._request_id,
      embeddings: embedding.data.map((item) => item.embedding),
      response: response.output_text,
      models: models.data.map((model) => model.id),
    };
  },

  async stream() {
    const pieces = [];
    let finish = null;
    let usage = null;
    const more = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await chat("Hello, how are you?", more)) {
      pieces.push(chunk.choices[0]?.delta?.content ?? "");
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    const events = [];
    let text = "";
    for await (const event of await client.responses.create({ model: "m", input: "Hello", stream: true })) {
      events.push(event.type);
      text += event.type === "response.output_text.delta" ? event.delta : "";
    }
    return { text: pieces.join(""), finish, total: usage.total_tokens, first: events[0], last: events.at(-1), response: text };
  },

  async helper() {
    const stream = client.chat.completions.stream({ model: "m", messages: [{ role: "user", content: "Hello" }] });
    return { text: (await stream.finalChatCompletion()).choices[0].message.content };
  },

  async errors() {
    return {
      batched: await told(client.chat.completions.create({ model: "m", messages: [] })),
      streamed: await told(client.chat.completions.create({ model: "m", messages: [], stream: true })),
      missing: await told(chat("[[error:404]]")),
      unknown: await told(client.models.retrieve("none")),
      stranger: await told(chat("Hello", {}, {}, new OpenAI({ apiKey: "wrong" }))),
      odd: await told(client.post("/chat/completions", { body: [] })),
    };
  },

  async many() {
    const numbers = [...Array(300).keys()];
    return Promise.all(numbers.map(async (number) => (await chat(`${number}`)).choices[0].message.content));
  },

  async retries() {
    let requests = 0;
    const counted = (...given) => ((requests += 1), fetch(...given));
    const impatient = new OpenAI({ timeout: 1_500, maxRetries: 20, fetch: counted });
    const answer = await chat("Take your time", {}, {}, impatient);
    return { text: answer.choices[0].message.content, requests };
  },
};

scenarios[process.argv[2]]().then((seen) => console.log(JSON.stringify(seen)));
