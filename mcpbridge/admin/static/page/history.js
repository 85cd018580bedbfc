/**
 * What is computed from several documents: rates, and the points of charts.
 */

/** The charts show this many seconds, and at most this many points. */
export const HISTORY_SECONDS = 300;
export const HISTORY_POINTS = 300;
/** Rates are means over this many seconds. */
export const RATE_SECONDS = 10;
/** Seconds between two points beyond which nothing is known of what was between them. */
export const GAP_SECONDS = 15;

/** The requests and errors per second of each server, as means over `RATE_SECONDS`. */
export class Rates {
  #samples = [];

  /** Take a document. */
  add(document) {
    const counters = new Map(
      document.servers.map((each) => [each.name, [each.requests, each.errors]]),
    );
    const samples = this.#samples;
    if (samples.length && samples[0].started !== document.started) samples.length = 0;
    samples.push({ now: document.now, started: document.started, counters });
    while (samples.length > 2 && samples[1].now <= document.now - RATE_SECONDS) samples.shift();
    if (samples.length > HISTORY_POINTS) samples.shift();
  }

  /** Return `{requests, errors}` per second of a server; null where that is not known yet. */
  of(name) {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    const [before, after] = [first?.counters.get(name), last?.counters.get(name)];
    const seconds = last?.now - first?.now;
    if (!before || !after || !(seconds > 0) || after[0] < before[0] || after[1] < before[1]) {
      return null;
    }
    return {
      requests: (after[0] - before[0]) / seconds,
      errors: (after[1] - before[1]) / seconds,
    };
  }

  /** Return the sum for these servers; null before the second document. */
  sum(servers) {
    if (this.#samples.length < 2) return null;
    const found = { requests: 0, errors: 0 };
    for (const { name } of servers) {
      const one = this.of(name);
      found.requests += one?.requests ?? 0;
      found.errors += one?.errors ?? 0;
    }
    return found;
  }
}

/** Add a point `{at, …}` to a chart's points, and drop those that are too old or too many. */
export function addPoint(points, point) {
  if (points.length && points.at(-1).at > point.at) points.length = 0;
  points.push(point);
  let old = Math.max(0, points.length - HISTORY_POINTS);
  while (points[old].at < point.at - HISTORY_SECONDS) old += 1;
  points.splice(0, old);
}

/** Return the runs of points that have a value and follow each other without a gap. */
export function runs(points, key) {
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (point[key] == null) continue;
    if (point.at - last > GAP_SECONDS) found.push([]);
    found.at(-1).push(point);
    last = point.at;
  }
  return found;
}

/** Return the largest value of some points, 0 without any. */
export function peak(points, key) {
  return points.reduce((most, each) => Math.max(most, each[key] ?? 0), 0);
}
