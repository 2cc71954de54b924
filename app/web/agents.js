// What can be said to an agent, by what it says of itself in `GET /agents`.

const QUESTIONS = {
  assistant: [
    "What time is it in Tokyo, what is 17*23, and what do the docs say about cancel?",
    "What is the weather in Oslo and in Rome?",
  ],
  chat: ["Write 150 words about a water mill.", "Write 3 paragraphs about rivers."],
  extract: [
    "Ada Lovelace met Charles Babbage in London on 5 June 1833. He showed her the Difference Engine, which had cost £17,470.",
  ],
  research: ["Compare the weather in Oslo and in Rome, and say what the docs tell about resuming a stream."],
  approval: ["Email ada@example.com that the build is green"],
};

/** Questions to begin with: of the built-in agents only, since nobody here knows what others are for. */
export function questions(agent) {
  return Object.hasOwn(QUESTIONS, agent.name) ? QUESTIONS[agent.name] : [];
}

/** Whether a person can write to it as one writes a message; else it wants an object, as JSON. */
export function takesText(agent) {
  return agent.capabilities.text_input || agent.capabilities.messages;
}

/** What is sent for a message. An agent that keeps no threads is told all that was said before, if it takes messages. */
export function inputFor(agent, text, turns) {
  if (!takesText(agent)) return JSON.parse(text);
  if (agent.capabilities.threads || !agent.capabilities.messages || turns.length === 0) return text;
  const said = turns.filter((turn) => turn.question && turn.text);
  const before = said.flatMap(({ question, text: answer }) => [
    { role: "user", content: question },
    { role: "assistant", content: answer },
  ]);
  return { messages: [...before, { role: "user", content: text }] };
}

/** An object that its input schema would admit, to begin with. */
export function example(agent) {
  const { properties = {}, required = [] } = agent.input_schema;
  const names = required.length ? required : Object.keys(properties);
  return Object.fromEntries(names.map((name) => [name, ZERO[properties[name]?.type] ?? null]));
}

const ZERO = { string: "", integer: 0, number: 0, boolean: false, array: [], object: {} };
