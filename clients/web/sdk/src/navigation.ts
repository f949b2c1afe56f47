import { LIMITS, type NavigationData } from "./contract.js";

/** Which views were open for how long, since the last event. */
export class NavigationTrail {
  #visits: { view: string; from: number; until?: number }[] = [];

  /** Notes that `view` (a route pattern, never an address with data in it) opened at `at`, milliseconds. */
  open(view: string, at: number): void {
    const current = this.#visits.at(-1);
    if (current !== undefined) current.until = at;
    this.#visits.push({ view: view.slice(0, LIMITS.viewLength), from: at });
    this.#visits = this.#visits.slice(-LIMITS.views);
  }

  /** The trail so far; the view that is still open starts the next one. */
  take(at: number): NavigationData | undefined {
    if (this.#visits.length === 0) return undefined;
    const visits = this.#visits;
    const last = visits.at(-1);
    this.#visits = last === undefined ? [] : [{ view: last.view, from: at }];
    const dwell = (from: number, until: number): number =>
      Math.min(LIMITS.dwellMs, Math.max(0, Math.round(until - from)));
    return { views: visits.map((visit) => visit.view), dwellMs: visits.map((v) => dwell(v.from, v.until ?? at)) };
  }

  clear(): void {
    this.#visits = [];
  }
}
