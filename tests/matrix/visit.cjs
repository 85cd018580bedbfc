/**
 * What the clients in JavaScript have in common: the operations of a visit,
 * and their reports, which are those of `client1.py`.
 *
 * `main` gets a function that connects: of (revision, url, visit), it resolves
 * to what `operations` calls a connection.
 */
"use strict";

const { readFileSync } = require("node:fs");
const { setTimeout: sleep } = require("node:timers/promises");

const ELICITATION_SINCE = "2025-06-18";
const OPERATION_SECONDS = 20;

/** What one side has not got. */
class Absent extends Error {}

const assert = (condition, why) => {
  if (!condition) throw new Error(typeof why === "string" ? why : JSON.stringify(why));
};
const marks = () => readFileSync(process.env.MATRIX_MARKS, "utf8").split("\n");

/** Wait for something; throws when it does not happen. */
async function until(happened, what, seconds = 10) {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; await sleep(20)) {
    if (happened()) return;
  }
  throw new Error(`${what} has not come`);
}

/** A promise, for as long as an operation may take. */
async function within(seconds, promise) {
  const timer = new AbortController();
  const late = sleep(seconds * 1000, null, { signal: timer.signal }).then(() => {
    throw new Error(`not done after ${seconds} seconds`);
  });
  late.catch(() => {});
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
  }
}

/** All that a tool said. */
function text({ content, isError }) {
  const said = content.flatMap((each) => (each.type === "text" ? [each.text] : [])).join("\n");
  assert(!isError, said);
  return said;
}

const operations = {
  async list({ client }, { tool }) {
    const { tools } = await client.listTools();
    assert(tools.some(({ name }) => name === tool), tools.map(({ name }) => name));
  },

  async call({ call }, { tool, arguments: args, says }) {
    const said = text(await call({ name: tool, arguments: args }));
    assert(said.includes(says), said);
  },

  async progress({ call, visit }, { tool, arguments: args, steps }) {
    visit.progress = [];
    // not `onprogress`: that forgets what comes in one piece with the result
    text(await call({ name: tool, arguments: args, _meta: { progressToken: "a token" } }));
    await until(() => visit.progress.length >= steps, `progress beyond ${JSON.stringify(visit.progress)}`, 5);
    const expected = Array.from({ length: steps }, (_, step) => ({ "a token": step + 1 }));
    assert(JSON.stringify(visit.progress) === JSON.stringify(expected), visit.progress);
  },

  async cancel(connection, { tool, arguments: args, leaves_mark }, plan) {
    const aborting = new AbortController();
    const options = { signal: aborting.signal };
    const ended = connection.call({ name: tool, arguments: args }, options).then(
      (result) => ({ result }),
      (error) => ({ error }),
    );
    if (leaves_mark) {
      await until(() => marks().includes(`started ${args.mark}`), "the start");
    } else {
      await sleep(300);
    }
    aborting.abort("a test");
    const { result } = await ended;
    assert(result === undefined, result);
    if (leaves_mark) {
      await until(() => marks().includes(`cancelled ${args.mark}`), "the cancellation");
    }
    await operations.call(connection, plan.call);
  },

  async elicitation(connection, { tool, arguments: args, says }) {
    if (connection.visit.revision < ELICITATION_SINCE) {
      throw new Absent("the revision has no elicitation");
    }
    await operations.call(connection, { tool, arguments: args, says });
  },

  async subscription({ call, client, subscribe, visit }, { uri, tool, arguments: args }) {
    if (!client.getServerCapabilities().resources?.subscribe) {
      throw new Absent("the server has no resource subscriptions");
    }
    const unsubscribe = await subscribe(uri);
    text(await call({ name: tool, arguments: args }));
    await until(() => visit.updated.length, "the update");
    assert(visit.updated[0] === uri, visit.updated);
    await unsubscribe();
  },
};

/** Print the outcome of one operation. */
const report = (backend, op, outcome) => console.log(JSON.stringify({ backend, op, ...outcome }));

/** One operation, and its report. */
async function attempt(connection, backend, op, plan) {
  try {
    if (typeof plan[op] === "string") throw new Absent(plan[op]);
    await within(OPERATION_SECONDS, operations[op](connection, plan[op], plan));
    report(backend, op, { ok: true });
  } catch (error) {
    if (error instanceof Absent) report(backend, op, { absent: error.message });
    else report(backend, op, { ok: false, why: String(error) });
  }
}

/** All backends, one after the other. */
async function main(connect) {
  const [revision, plans] = process.argv.slice(2);
  for (const [backend, plan] of Object.entries(JSON.parse(plans))) {
    const answer = () => ({ action: "accept", content: plan.elicitation.answer });
    const elicits = revision >= ELICITATION_SINCE;
    const visit = { revision, answer, elicits, progress: [], updated: [] };
    let op = "connect";
    try {
      const connection = await within(OPERATION_SECONDS, connect(revision, plan.url, visit));
      connection.visit = visit;
      report(backend, op, { ok: true, version: connection.version });
      for (const each of Object.keys(plan)) {
        if (each !== "url") await attempt(connection, backend, each, plan);
      }
      op = "close";
      await within(OPERATION_SECONDS, connection.close());
    } catch (error) {
      report(backend, op, { ok: false, why: String(error) });
    }
  }
  process.exit(); // whatever an operation that took too long still waits for
}

module.exports = { main };
