/*
 * The same offer in JavaScript: a stdio server on the official SDK of the second
 * generation.
 *
 *     node server.mjs FOLDER [--seconds N] [--era both|modern]
 *
 * FOLDER is the `node_modules` that has the SDK, for a module is looked up from
 * where the file is and not from where it is run.  It speaks both eras, or refuses
 * `initialize` and waits on.  A tool is written once: it says what input it needs,
 * which the SDK asks a legacy client for itself.
 */

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = fileURLToPath(import.meta.url);
const { values: options, positionals } = parseArgs({
  options: {
    seconds: { type: "string", default: "13.5" },
    era: { type: "string", default: "both" },
  },
  allowPositionals: true,
});
const sdk = createRequire(join(resolve(positionals[0]), "resolved-from-here"));
const { MissingRequiredClientCapabilityError, ProtocolError, Server } = sdk(
  "@modelcontextprotocol/server",
);
const { createRequestStateCodec, inputRequired } = sdk("@modelcontextprotocol/server");
const { serveStdio } = sdk("@modelcontextprotocol/server/stdio");

const offer = JSON.parse(readFileSync(new URL("offer.json", import.meta.url)));
const CAPABILITIES = {
  "elicitation/create": "elicitation",
  "sampling/createMessage": "sampling",
  "roots/list": "roots",
};
const DECLARED = "io.modelcontextprotocol/clientCapabilities";
const INVALID_PARAMS = -32602;
const STEP = 50; // milliseconds, between the steps of a tool that reports what it does

/** The call cannot go on without input; `result` is what to answer it with. */
class InputNeeded extends Error {
  constructor(result) {
    super("input needed");
    this.result = result;
  }
}

class ToolFailure extends Error {}

const text = (what) => ({ type: "text", text: what });

/** A template with `{name}` replaced by the value of that name, wherever it stands. */
function fill(template, values) {
  let filled = JSON.stringify(template);
  for (const [name, value] of Object.entries(values)) {
    filled = filled.replaceAll(`{${name}}`, JSON.stringify(String(value)).slice(1, -1));
  }
  return JSON.parse(filled);
}

/** One `tools/call` or `prompts/get`: what it brought, and how to ask its client. */
class Call {
  constructor(server, codec, params, context) {
    this.server = server;
    this.arguments = params.arguments ?? {};
    this.codec = codec;
    this.whole = context;
    this.context = context.mcpReq;
  }

  can(capability) {
    const declared = this.context.envelope?.[DECLARED] ?? this.server.getClientCapabilities() ?? {};
    return declared[capability] !== undefined;
  }

  /** Ask all these questions at once, or know the answers, by the same keys. */
  async ask(questions) {
    const needed = Object.values(questions).map((question) => CAPABILITIES[question.method]);
    const lacking = needed.filter((capability) => !this.can(capability));
    if (lacking.length > 0) {
      const requiredCapabilities = Object.fromEntries(lacking.map((each) => [each, {}]));
      throw new MissingRequiredClientCapabilityError({ requiredCapabilities });
    }
    const brought = { ...this.context.requestState(), ...this.context.inputResponses };
    const known = (key) => typeof brought[key] === "object" && brought[key] !== null;
    const missing = Object.entries(questions).filter(([key]) => !known(key));
    if (missing.length > 0) {
      const inputRequests = Object.fromEntries(missing);
      const requestState = await this.codec.mint(brought, this.whole);
      throw new InputNeeded(inputRequired({ inputRequests, requestState }));
    }
    return Object.fromEntries(Object.keys(questions).map((key) => [key, brought[key]]));
  }

  async askRounds(rounds) {
    const answers = {};
    for (const keys of rounds) {
      const questions = Object.fromEntries(keys.map((key) => [key, offer.questions[key]]));
      Object.assign(answers, await this.ask(questions));
    }
    return answers;
  }

  async log(what) {
    await this.context.log("info", what, "conformance");
  }

  async progress(progress, total, message) {
    const progressToken = this.context._meta?.progressToken;
    if (progressToken !== undefined) {
      const params = { progressToken, progress, total, message };
      await this.context.notify({ method: "notifications/progress", params });
    }
  }
}

// Tools.  Each gets its call, and returns contents.

const returning = (contents) => async () => contents;
const asking = (rounds) => async (call) => [
  text(`state-ok: ${JSON.stringify(await call.askRounds(rounds))}`),
];

async function askingWhatCanBeAsked(call) {
  const keys = ["user_name", "capital_question"];
  const askable = keys.filter((key) => call.can(CAPABILITIES[offer.questions[key].method]));
  return asking([askable])(call);
}

async function withLogging(call) {
  for (const what of ["Tool execution started", "Tool processing data"]) {
    await call.log(what);
    await sleep(STEP);
  }
  await call.log("Tool execution completed");
  return [text("Tool with logging executed successfully")];
}

async function withProgress(call) {
  for (const done of [0, 50, 100]) {
    await call.progress(done, 100, `Completed step ${done} of 100`);
    await sleep(STEP);
  }
  return [text("Tool with progress executed successfully")];
}

async function failing() {
  throw new ToolFailure("This tool intentionally returns an error for testing");
}

async function sampling(call) {
  const messages = [{ role: "user", content: text(call.arguments.prompt) }];
  const params = { messages, maxTokens: 100 };
  const { sample } = await call.ask({ sample: { method: "sampling/createMessage", params } });
  return [text(`LLM response: ${sample.content.text}`)];
}

async function elicit(call, question) {
  const { elicit: answer } = await call.ask({ elicit: question });
  return `action=${answer.action}, content=${JSON.stringify(answer.content ?? {})}`;
}

async function elicitation(call) {
  const { method, params } = offer.questions.person;
  const question = { method, params: { ...params, message: call.arguments.message } };
  return [text(`User response: ${await elicit(call, question)}`)];
}

const eliciting = (key) => async (call) => [
  text(`Elicitation completed: ${await elicit(call, offer.questions[key])}`),
];

async function reconnection(call) {
  await call.log("The connection may be lost now");
  await sleep(1000 * Number(options.seconds));
  return [text("Reconnection test completed successfully")];
}

const showArguments = async (call) => [text(`Called with: ${JSON.stringify(call.arguments)}`)];

/** A tool that puts an item on a list, or takes it off again. */
const changing = (items, item, changed) => async () => {
  const at = items.indexOf(item);
  if (at === -1) items.push(item);
  else items.splice(at, 1);
  await changed();
  return [text("The list has changed")];
};

const mapped = (table, make) =>
  Object.fromEntries(Object.entries(table).map(([name, value]) => [name, make(value)]));

/**
 * A factory of servers, which share what they offer and the key of their states.
 * Where each serves one request alone, `notifier` tells all who listen of a change.
 */
export function factory(notifier) {
  const codec = createRequestStateCodec({
    key: randomBytes(32),
    bind: (context) => context.mcpReq.method,
  });
  const tools = [...offer.tools];
  const prompts = [...offer.prompts];

  return () => {
    const changeable = { listChanged: true };
    const server = new Server(
      { name: "conformance", version: "1" },
      {
        capabilities: {
          tools: changeable,
          prompts: changeable,
          resources: { ...changeable, subscribe: true },
          logging: {},
          completions: {},
        },
        requestState: { verify: codec.verify },
      },
    );
    const changed = notifier ?? {
      toolsChanged: () => server.sendToolListChanged(),
      promptsChanged: () => server.sendPromptListChanged(),
    };
    const calls = {
      ...mapped(offer.results, returning),
      ...mapped(offer.rounds, asking),
      test_input_required_result_capabilities: askingWhatCanBeAsked,
      test_tool_with_logging: withLogging,
      test_logging_tool: withLogging,
      test_tool_with_progress: withProgress,
      test_error_handling: failing,
      test_reconnection: reconnection,
      test_sampling: sampling,
      test_elicitation: elicitation,
      test_elicitation_sep1034_defaults: eliciting("defaults"),
      test_elicitation_sep1330_enums: eliciting("choices"),
      test_trigger_tool_change: changing(tools, offer.sometimes.tools, changed.toolsChanged),
      test_trigger_prompt_change: changing(
        prompts,
        offer.sometimes.prompts,
        changed.promptsChanged,
      ),
      test_custom_header: showArguments,
      json_schema_2020_12_tool: showArguments,
    };

    async function callTool({ params }, context) {
      if (!Object.hasOwn(calls, params.name)) {
        throw new ProtocolError(INVALID_PARAMS, `Unknown tool: ${params.name}`);
      }
      try {
        return { content: await calls[params.name](new Call(server, codec, params, context)) };
      } catch (thrown) {
        if (thrown instanceof InputNeeded) return thrown.result;
        if (thrown instanceof ToolFailure) return { content: [text(thrown.message)], isError: true };
        throw thrown;
      }
    }

    async function getPrompt({ params }, context) {
      if (!Object.hasOwn(offer.messages, params.name)) {
        throw new ProtocolError(INVALID_PARAMS, `Unknown prompt: ${params.name}`);
      }
      const call = new Call(server, codec, params, context);
      try {
        const answers = await call.askRounds(offer.rounds[params.name] ?? []);
        const contents = Object.values(answers).map((answer) => answer.content);
        const values = Object.assign({}, call.arguments, ...contents);
        return { messages: fill(offer.messages[params.name], values) };
      } catch (thrown) {
        if (thrown instanceof InputNeeded) return thrown.result;
        throw thrown;
      }
    }

    async function readResource({ params: { uri } }) {
      const found = /^test:\/\/template\/([^/]+)\/data$/.exec(uri);
      if (found) return { contents: [fill(offer.templateContents, { id: found[1] })] };
      if (Object.hasOwn(offer.contents, uri)) return { contents: [offer.contents[uri]] };
      throw new ProtocolError(INVALID_PARAMS, "Resource not found", { uri });
    }

    async function complete({ params }) {
      const begun = params.argument.value;
      const values = offer.completions.filter((word) => word.startsWith(begun));
      return { completion: { values, total: values.length, hasMore: false } };
    }

    const handlers = {
      "tools/list": async () => ({ tools }),
      "tools/call": callTool,
      "resources/list": async () => ({ resources: offer.resources }),
      "resources/templates/list": async () => ({ resourceTemplates: offer.resourceTemplates }),
      "resources/read": readResource,
      "resources/subscribe": async () => ({}),
      "resources/unsubscribe": async () => ({}),
      "prompts/list": async () => ({ prompts }),
      "prompts/get": getPrompt,
      "completion/complete": complete,
    };
    for (const [method, handler] of Object.entries(handlers)) {
      server.setRequestHandler(method, handler);
    }
    return server;
  };
}

if (process.argv[1] === here) {
  const legacy = options.era === "modern" ? "reject" : "serve";
  serveStdio(factory(), { legacy, onerror: (error) => console.error(error.message) });
}
