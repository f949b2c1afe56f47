export interface BackoffOptions {
  readonly firstMs?: number;
  readonly maxMs?: number;
  /** 0 to 1; `Math.random` unless a test says otherwise. */
  readonly random?: () => number;
}

/** Waits that double, each somewhere between half and the whole, so that many clients do not come back at once. */
export class Backoff {
  readonly #firstMs: number;
  readonly #maxMs: number;
  readonly #random: () => number;
  #failures = 0;

  constructor({ firstMs = 250, maxMs = 15_000, random = Math.random }: BackoffOptions = {}) {
    this.#firstMs = firstMs;
    this.#maxMs = maxMs;
    this.#random = random;
  }

  get failures(): number {
    return this.#failures;
  }

  /** Milliseconds to wait after one more failure. */
  next(): number {
    const whole = Math.min(this.#maxMs, this.#firstMs * 2 ** Math.min(this.#failures, 16));
    this.#failures += 1;
    return whole * (0.5 + this.#random() / 2);
  }

  reset(): void {
    this.#failures = 0;
  }
}
