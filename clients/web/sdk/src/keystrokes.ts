import { type KeyClass, type KeystrokePattern, LIMITS } from "./contract.js";

/** How a touch pressed a key, each 0 to 1. */
export interface Touch {
  readonly pressure: number;
  readonly contactSize: number;
}

interface Keystroke {
  readonly keyClass: KeyClass;
  readonly down: number;
  readonly touch: Touch | undefined;
  up?: number;
}

/** Tenths of a millisecond: finer than any keyboard reports, and short on the wire. */
const tenths = (ms: number): number => Math.round(ms * 10) / 10;
const unit = (value: number): number => Math.min(1, Math.max(0, value));

/**
 * The keystrokes of one phrase, from presses and releases in whatever order they come.
 *
 * Keys overlap when people type fast, so each press waits for its own release. A release may never come (the window lost
 * the focus, macOS swallows it under Command): such a key has no known hold and is left out, and the run then no longer
 * claims to be a known prompt, because its positions moved.
 */
export class KeystrokeRun {
  readonly #keys: Keystroke[] = [];
  readonly #open = new Map<string, Keystroke>();
  #lost = 0;

  /** Keys pressed so far. */
  get size(): number {
    return this.#keys.length;
  }

  get full(): boolean {
    return this.#keys.length >= LIMITS.keys;
  }

  /** True when no key is waiting for its release. */
  get settled(): boolean {
    return this.#open.size === 0;
  }

  /** Milliseconds on the event clock of the last press; undefined before the first. */
  get lastPress(): number | undefined {
    return this.#keys.at(-1)?.down;
  }

  /** Notes a press of the key `id` (its physical code). A second press without a release means that the release was lost. */
  press(id: string, keyClass: KeyClass, at: number, touch?: Touch): void {
    if (this.full) return;
    if (this.#open.delete(id)) this.#lost += 1;
    // Clocks of different devices can step back a little; a press is never before the one that was reported before it.
    const down = Math.max(at, this.lastPress ?? at);
    const key: Keystroke = { keyClass, down, touch };
    this.#keys.push(key);
    this.#open.set(id, key);
  }

  /** Notes a release. Returns false when this run has no such key open: its press was elsewhere. */
  release(id: string, at: number): boolean {
    const key = this.#open.get(id);
    if (key === undefined) return false;
    this.#open.delete(id);
    const hold = at - key.down;
    if (hold < 0 || hold > LIMITS.holdMs) this.#lost += 1;
    else key.up = at;
    return true;
  }

  /** Gives up waiting for releases that cannot come any more. */
  abandonOpen(): void {
    this.#lost += this.#open.size;
    this.#open.clear();
  }

  /** The run as the contract has it, or undefined when no key was observed whole. */
  toPattern(promptId?: string): KeystrokePattern | undefined {
    const keys = this.#keys.filter((key): key is Keystroke & { up: number } => key.up !== undefined);
    if (keys.length === 0) return undefined;
    const pattern: KeystrokePattern = {
      keyClasses: keys.map((key) => key.keyClass),
      holdMs: keys.map((key) => tenths(key.up - key.down)),
      flightMs: keys.map((key, i) => tenths(Math.min(key.down - (keys[i - 1] ?? key).down, LIMITS.flightMs))),
    };
    if (promptId !== undefined && this.#lost === 0) pattern.promptId = promptId;
    if (keys.every((key) => key.touch !== undefined)) {
      pattern.pressure = keys.map((key) => unit(key.touch?.pressure ?? 0));
      pattern.contactSize = keys.map((key) => unit(key.touch?.contactSize ?? 0));
    }
    return pattern;
  }
}
