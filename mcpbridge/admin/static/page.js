/**
 * The status page: shows what the event stream `events` tells of the bridge, and ends sessions.
 *
 * Clients choose their names and backends what they write to stderr, so everything that is shown
 * may be hostile: it gets into the page as text alone, never as markup.  Each update changes only
 * the text that differs, so that focus, selection and scroll position stay where they are.
 */

import { serverColumns, sessionColumns } from "./page/columns.js";
import { Confirmation } from "./page/confirmation.js";
import { Connection } from "./page/connection.js";
import { arrange, byId, setText } from "./page/elements.js";
import { isProblem, ServerFailures } from "./page/failures.js";
import { Figure } from "./page/figure.js";
import { addPoint, peak, Rates } from "./page/history.js";
import { Stream } from "./page/stream.js";
import { MAX_ROWS, Table } from "./page/table.js";
import { breakdown, bytes, count, duration, latency, plural, rate, total } from "./page/texts.js";
import { Token } from "./page/token.js";

/** Seconds of loop lag that are shown as a problem. */
const HIGH_LAG = 0.25;

/** All that is shown of the bridge. */
class StatusPage {
  rates = new Rates();
  /** The last document, and when it came. */
  document = null;
  #receivedAt = 0;
  #points = [];
  #failures = new Map();
  #figures;
  #servers;
  #sessions;
  #connection;
  #drawn = null;

  constructor(connection, confirmation) {
    this.#connection = connection;
    const place = byId("figures");
    this.#figures = {
      requests: new Figure(place, "Requests per second", "requests"),
      errors: new Figure(place, "Errors per second", "errors"),
      sessions: new Figure(place, "Live sessions", "sessions"),
      lag: new Figure(place, "Loop lag", "lag"),
      connections: new Figure(place, "Connections"),
      memory: new Figure(place, "Memory of the bridge"),
      descriptors: new Figure(place, "File descriptors"),
      refusals: new Figure(place, "Other refusals"),
    };
    this.#servers = new Table(byId("servers"), {
      label: "Servers", columns: serverColumns(this), sorted: "Server", key: (each) => each.name,
      none: "There is no server.",
    });
    this.#sessions = new Table(byId("sessions"), {
      label: "Sessions", columns: sessionColumns(this), sorted: "Age",
      key: (each) => JSON.stringify([each.id, each.server, each.opened, each.pid]),
      none: "There is no session. Connect a client, and it appears here.",
      action: {
        title: "End",
        label: (each) => `End the session ${each.id}`,
        disabled: (each) => each.state === "ending" || each.state === "closing",
        run: (each) => confirmation.open(each),
      },
    });
    byId("filter").addEventListener("input", (event) => {
      this.#sessions.filter(event.target.value);
      this.#showCounts();
    });
    document.addEventListener("visibilitychange", () => this.#draw());
    setInterval(() => this.#tick(), 1000);
  }

  /** Return the seconds since the epoch by the clock of the bridge. */
  get now() {
    return this.document.now + (performance.now() - this.#receivedAt) / 1000;
  }

  /** Take a document; nothing is drawn while nobody looks. */
  received(found) {
    for (const server of found.servers) {
      server.retryAt = server.retry_in == null ? null : found.now + server.retry_in;
    }
    if (this.document && this.document.started !== found.started) this.#points.length = 0;
    this.document = found;
    this.#receivedAt = performance.now();
    this.rates.add(found);
    const sum = this.rates.sum(found.servers);
    addPoint(this.#points, {
      at: found.now, requests: sum?.requests, errors: sum?.errors,
      sessions: found.sessions.live, lag: found.loop_lag,
    });
    this.#connection.received(found);
    this.#draw();
  }

  /** Say that a document could not be shown. */
  failed(error) {
    this.#connection.failed(error);
  }

  /** Take the state of the connection. */
  changed(link) {
    this.#connection.changed(link);
  }

  #draw() {
    if (document.hidden || this.document === null || this.#drawn === this.document) return;
    this.#drawn = this.document;
    byId("content").hidden = false;
    this.#showHeader();
    this.#showFigures();
    this.#showFailures();
    this.#servers.update(this.document.servers);
    this.#sessions.update(this.document.listed);
    this.#showCounts();
    this.#tick();
  }

  /** Show what changes with time alone. */
  #tick() {
    this.#connection.tick();
    if (document.hidden || this.document === null || this.#connection.lost) return;
    const { version, pid, started, servers } = this.document;
    const up = duration(this.now - started);
    setText(byId("about"), `Version ${version} · process ${pid} · up ${up}`);
    for (const server of servers) this.#failures.get(server.name)?.tick(server, this.now);
  }

  #showHeader() {
    setText(byId("urls"), this.document.urls.join("  "));
    const failing = this.document.servers.filter((each) => each.state === "failing").length;
    document.title = failing ? `${plural(failing, "server")} failing - mcpbridge` : "mcpbridge";
  }

  #showFigures() {
    const { sessions, connections, loop_lag: lag, refusals, servers } = this.document;
    const sum = this.rates.sum(servers);
    const { requests, errors, lag: loop } = this.#figures;
    const most = (key, text) => `peak ${text(peak(this.#points, key))}`;
    requests.show(rate(sum?.requests), most("requests", rate));
    errors.show(rate(sum?.errors), most("errors", rate), sum?.errors > 0);
    this.#figures.sessions.show(count(sessions.live), ofLimit(sessions.limit));
    loop.show(latency(lag), most("lag", latency), lag >= HIGH_LAG);
    this.#figures.connections.show(count(connections.open), ofLimit(connections.limit));
    this.#figures.memory.show(bytes(this.document.memory_bytes), "without its backends");
    this.#figures.descriptors.show(count(this.document.descriptors), "open in the bridge");
    const causes = breakdown(refusals).replaceAll("\n", ", ");
    this.#figures.refusals.show(count(total(refusals)), causes || "of requests to no server");
    for (const each of [requests, errors, this.#figures.sessions, loop]) {
      each.draw(this.#points, this.document.now);
    }
  }

  #showFailures() {
    const before = this.#failures;
    this.#failures = new Map();
    const [problems, others] = [[], []];
    for (const server of this.document.servers.slice(0, MAX_ROWS)) {
      const problem = isProblem(server, this.document.now);
      if (!problem && !server.failures?.length) continue;
      const view = before.get(server.name) ?? new ServerFailures(server);
      before.delete(server.name);
      this.#failures.set(server.name, view);
      view.show(server, this.document.now);
      (problem ? problems : others).push(view.node);
    }
    for (const { node } of before.values()) node.remove();
    for (const [id, nodes] of [["problems", problems], ["failures", others]]) {
      byId(id).hidden = nodes.length === 0;
      arrange(byId(id).lastElementChild, nodes);
    }
  }

  #showCounts() {
    if (this.document === null) return;
    const { listed, not_listed: more, servers } = this.document;
    const failing = servers.filter((each) => each.state === "failing").length;
    setText(byId("servers-count"), plural(servers.length, "server")
      + (failing ? `, ${failing} failing` : ""));
    const filtered = byId("filter").value.trim() !== "";
    const warm = listed.filter((each) => each.state === "warm").length;
    const texts = [plural(listed.length - warm, "session")];
    if (warm) texts.push(plural(warm, "warm process", "warm processes"));
    if (more) texts.push(`${count(more)} more that are not listed`);
    if (filtered) texts.push(`${count(this.#sessions.shown)} shown`);
    setText(byId("sessions-count"), texts.join(", "));
  }

  /** Return the second line of a server's state: since when, and when it is tried again. */
  stateAside(server) {
    const now = this.document.now;
    if (server.state === "starting" && server.since != null) {
      return `for ${duration(now - server.since)}`;
    }
    if (server.state !== "failing") return "";
    const wait = server.retry_in == null ? "" : `next try in ${duration(server.retry_in)}`;
    return wait || (server.since == null ? "" : `for ${duration(now - server.since)}`);
  }
}

const ofLimit = (limit) => (limit ? `of ${count(limit)} allowed` : "no limit");

/** Take the token of the form, or say what is wrong with it. */
function submitToken(event, token, stream) {
  event.preventDefault();
  const field = byId("token");
  const value = field.value.trim();
  const error = byId("login-error");
  if (!/^[\x21-\x7e]+$/.test(value)) {
    setText(error, "A token has only letters, digits and signs, without spaces.");
    error.hidden = false;
    return;
  }
  token.set(value, byId("keep").checked);
  field.value = "";
  stream.connect();
}

function main() {
  const token = new Token();
  const page = new StatusPage(new Connection(token), new Confirmation(token));
  const stream = new Stream(token, page);
  byId("try-now").addEventListener("click", () => stream.connect());
  byId("login").addEventListener("submit", (event) => submitToken(event, token, stream));
  byId("forget").addEventListener("click", () => {
    token.set("", false);
    stream.connect();
  });
  stream.connect();
}

main();
