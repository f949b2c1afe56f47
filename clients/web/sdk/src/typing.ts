import type { KeyClass, KeystrokePattern } from "./contract.js";
import { KeystrokeRun, type Touch } from "./keystrokes.js";

/** One press; `at` in milliseconds on the event clock. */
export interface Press {
  readonly id: string;
  readonly keyClass: KeyClass;
  readonly at: number;
  readonly touch?: Touch | undefined;
}

export interface TypingOptions {
  /** A pause that ends free text, milliseconds. */
  readonly pauseMs: number;
  /** Fewer keys than this say too little: such a run is dropped. */
  readonly minKeys: number;
  /** Called when a run has ended with Enter; false drops it (mistyped, say). */
  readonly accept: () => boolean;
  readonly onPattern: (pattern: KeystrokePattern) => void;
}

/** A prompt may be typed slowly, yet no flight may be over the contract's minute. */
const PROMPT_PAUSE_MS = 60_000;

/**
 * Cuts keystrokes into phrases: at Enter, when the caller says so, when the contract's 256 keys are full, and at a long pause.
 *
 * A phrase that ended still waits for the release of its last keys, while the next one may already have begun: fast typists
 * press the next key before they let go of Enter.
 */
export class Typing {
  readonly #options: TypingOptions;
  #run = new KeystrokeRun();
  #ending: KeystrokeRun[] = [];
  promptId: string | undefined;

  constructor(options: TypingOptions) {
    this.#options = options;
  }

  /** Keys of the phrase under way. */
  get size(): number {
    return this.#run.size;
  }

  press({ id, keyClass, at, touch }: Press): void {
    const last = this.#run.lastPress;
    if (last !== undefined && at - last > this.#pauseMs) this.#endAtPause();
    this.#run.press(id, keyClass, at, touch);
    if (keyClass === "enter") this.#endIf(this.#options.accept());
    else if (this.#run.full) this.finish();
  }

  release(id: string, at: number): void {
    // The oldest phrase that has the key open is the one that it was pressed in.
    const owner = [...this.#ending, this.#run].find((run) => run.release(id, at));
    if (owner !== undefined) this.#emitSettled();
  }

  /** No release that is still missing can come any more (the window lost the focus). */
  abandonOpen(): void {
    for (const run of [...this.#ending, this.#run]) run.abandonOpen();
    this.#emitSettled();
  }

  /** Ends the phrase under way; it is reported once its last key is released. */
  finish(): void {
    this.#endIf(true);
  }

  /** Drops the phrase under way. */
  discard(): void {
    this.#run = new KeystrokeRun();
  }

  /** Drops everything that was not reported yet. */
  clear(): void {
    this.#ending = [];
    this.discard();
  }

  /** To be called now and then: ends free text after a pause although no further key comes. */
  tick(now: number): void {
    const last = this.#run.lastPress;
    if (last !== undefined && now - last > this.#pauseMs) this.#endAtPause();
  }

  get #pauseMs(): number {
    return this.promptId === undefined ? this.#options.pauseMs : PROMPT_PAUSE_MS;
  }

  #endAtPause(): void {
    // A prompt left unfinished is not the prompt.
    this.#endIf(this.promptId === undefined);
  }

  #endIf(accepted: boolean): void {
    const run = this.#run;
    this.#run = new KeystrokeRun();
    if (!accepted || run.size < this.#options.minKeys) return;
    this.#ending.push(run);
    this.#emitSettled();
  }

  #emitSettled(): void {
    while (this.#ending[0]?.settled === true) {
      const pattern = this.#ending.shift()?.toPattern(this.promptId);
      if (pattern !== undefined) this.#options.onPattern(pattern);
    }
  }
}
