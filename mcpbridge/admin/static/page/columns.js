/**
 * The columns of the tables.
 */

import { badge } from "./elements.js";
import { breakdown, bytes, count, duration, latency, NONE, plural, rate, total } from "./texts.js";

const USES = ["session", "exclusive", "concurrent", "warm", "starting", "ending"];

/** Return the columns of the servers; `page` knows their rates. */
export function serverColumns(page) {
  const requests = (each) => page.rates.of(each.name)?.requests;
  const errors = (each) => page.rates.of(each.name)?.errors;
  const number = { kind: "number" };
  return [
    { title: "Server", kind: "name", text: (each) => each.name,
      aside: (each) => (each.path && each.path !== `/${each.name}` ? each.path : "") },
    { title: "State", kind: "state-cell", text: (each) => each.state,
      tone: (each) => badge(each.state), aside: (each) => page.stateAside(each) },
    { ...number, title: "Sessions", value: (each) => each.sessions.live,
      text: (each) => count(each.sessions.live),
      aside: (each) => (each.sessions.limit ? `of ${count(each.sessions.limit)}` : "") },
    { ...number, title: "Processes", value: (each) => total(each.processes),
      text: (each) => count(total(each.processes)),
      aside: (each) => USES.filter((use) => each.processes[use] > 0)
        .map((use) => `${use}: ${count(each.processes[use])}`).join("\n") },
    { ...number, title: "Waiting", value: (each) => each.waiting,
      text: (each) => count(each.waiting), alarming: (each) => each.waiting > 0 },
    { ...number, title: "Requests/s", value: requests, text: (each) => rate(requests(each)),
      aside: (each) => `${count(each.requests)} in all` },
    { ...number, title: "Errors/s", value: errors, text: (each) => rate(errors(each)),
      aside: (each) => `${count(each.errors)} in all`, alarming: (each) => errors(each) > 0 },
    { ...number, title: "p50", value: (each) => each.latency.p50,
      text: (each) => latency(each.latency.p50) },
    { ...number, title: "p95", value: (each) => each.latency.p95,
      text: (each) => latency(each.latency.p95) },
    { ...number, title: "Refusals", value: (each) => total(each.refusals),
      text: (each) => count(total(each.refusals)), aside: (each) => breakdown(each.refusals) },
    { ...number, title: "Exits", value: (each) => total(each.exits),
      text: (each) => count(total(each.exits)), aside: (each) => breakdown(each.exits) },
  ];
}

/** Return the columns of the sessions; `page` knows the time. */
export function sessionColumns(page) {
  const number = { kind: "number" };
  return [
    { title: "Session", kind: "name code", text: (each) => each.id,
      aside: (each) => (each.pid == null ? "" : `pid ${each.pid}`) },
    { title: "Server", text: (each) => each.server },
    { title: "Client", text: (each) => each.client || NONE, value: (each) => each.client || null },
    { title: "Identity", text: (each) => each.identity || NONE,
      value: (each) => each.identity || null },
    { title: "Transport", text: (each) => each.transport || NONE },
    { title: "State", text: (each) => each.state,
      tone: (each) => badge(each.state) },
    { ...number, title: "Age", value: (each) => page.document.now - each.opened,
      text: (each) => duration(page.document.now - each.opened) },
    { ...number, title: "In", label: "Messages in", value: (each) => each.messages_in,
      text: (each) => count(each.messages_in), aside: (each) => bytes(each.bytes_in) },
    { ...number, title: "Out", label: "Messages out", value: (each) => each.messages_out,
      text: (each) => count(each.messages_out), aside: (each) => bytes(each.bytes_out) },
    { ...number, title: "Refused", value: (each) => each.refused,
      text: (each) => count(each.refused), alarming: (each) => each.refused > 0 },
    { ...number, title: "Memory", value: (each) => each.memory_bytes,
      text: (each) => bytes(each.memory_bytes),
      aside: (each) => (each.processes == null ? ""
        : plural(each.processes, "process", "processes")) },
  ];
}
