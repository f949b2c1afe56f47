import { LIMITS, type MousePattern, type PointerAction } from "./contract.js";

/** Where the pointer was and what it did; milliseconds on the event clock, pixels. */
export interface PointerSample {
  readonly at: number;
  readonly x: number;
  readonly y: number;
  readonly action: PointerAction;
}

export interface PathOptions {
  /** Distance between the instants at which movement is noted, milliseconds; at least 100. */
  readonly stepMs?: number;
  /** Points of a finished window, 2 to 512. */
  readonly points?: number;
  /** A rest longer than this begins a new window, milliseconds. */
  readonly restMs?: number;
}

/**
 * Cuts pointer movement into windows of equally many points.
 *
 * A mouse reports 60 to 1,000 positions a second, and that rate alone would tell two people's devices apart. So movement is
 * noted only at instants that are whole steps after the window's first point, at the position interpolated for that instant:
 * what a 60 Hz and a 1,000 Hz mouse report then looks the same. Clicks keep their own time; it does not depend on the rate.
 */
export class PointerPath {
  readonly #stepMs: number;
  readonly #points: number;
  readonly #restMs: number;
  #window: PointerSample[] = [];
  #last: PointerSample | undefined;
  #lastScroll = Number.NEGATIVE_INFINITY;

  constructor({ stepMs = 100, points = 40, restMs = 60_000 }: PathOptions = {}) {
    this.#stepMs = Math.max(100, stepMs);
    this.#points = Math.min(Math.max(2, points), LIMITS.points);
    this.#restMs = restMs;
  }

  /** Points in the unfinished window. */
  get size(): number {
    return this.#window.length;
  }

  /** Adds what the pointer did; returns a window when this finishes one. */
  add(sample: PointerSample): MousePattern | undefined {
    const previous = this.#last;
    const at = Math.max(sample.at, previous?.at ?? sample.at);
    const current = { ...sample, at };
    const start = this.#window[0];
    if (start === undefined || previous === undefined || this.#tooLate(at, start.at, previous.at)) {
      this.#begin(current);
      return undefined;
    }
    const point = this.#pointAt(current, previous, start.at);
    this.#last = current;
    if (point !== undefined) this.#window.push(point);
    return this.#window.length < this.#points ? undefined : this.#finish();
  }

  /** Forgets the unfinished window. */
  clear(): void {
    this.#window = [];
    this.#last = undefined;
    this.#lastScroll = Number.NEGATIVE_INFINITY;
  }

  #tooLate(at: number, start: number, previous: number): boolean {
    return at - previous > this.#restMs || at - start > LIMITS.pathMs;
  }

  #begin(sample: PointerSample): void {
    this.clear();
    this.#window.push(sample);
    this.#last = sample;
  }

  /** The point to note for a sample, if any. */
  #pointAt(sample: PointerSample, previous: PointerSample, start: number): PointerSample | undefined {
    if (sample.action === "scroll") {
      // A wheel reports once a notch, a trackpad sixty times a second: one point a step for both.
      if (sample.at - this.#lastScroll < this.#stepMs) return undefined;
      this.#lastScroll = sample.at;
      return sample;
    }
    if (sample.action !== "move" && sample.action !== "drag") return sample;
    const instant = start + Math.floor((sample.at - start) / this.#stepMs) * this.#stepMs;
    if (instant <= this.#noted() || instant < previous.at) return undefined;
    const gap = sample.at - previous.at;
    // After a rest the pointer was still where it had stopped; while it moves (some remote desktops report only nine positions
    // a second), it was between the two positions.
    const share = gap > 2 * this.#stepMs || gap === 0 ? 0 : (instant - previous.at) / gap;
    return {
      at: instant,
      x: previous.x + share * (sample.x - previous.x),
      y: previous.y + share * (sample.y - previous.y),
      action: sample.action,
    };
  }

  #noted(): number {
    return this.#window.at(-1)?.at ?? Number.NEGATIVE_INFINITY;
  }

  #finish(): MousePattern {
    const points = this.#window;
    this.clear();
    const first = points[0] as PointerSample;
    const place = (px: number): number => Math.round(Math.min(LIMITS.pathPx, Math.max(-LIMITS.pathPx, px))) + 0;
    return {
      timeMs: points.map((point) => Math.round(point.at - first.at)),
      xPx: points.map((point) => place(point.x - first.x)),
      yPx: points.map((point) => place(point.y - first.y)),
      actions: points.map((point) => point.action),
    };
  }
}
