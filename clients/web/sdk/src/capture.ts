import type { BehavioralEvent, ContextualData, KeystrokePattern, MousePattern } from "./contract.js";
import { LIMITS } from "./contract.js";
import { bindDom } from "./dom.js";
import { randomId } from "./ids.js";
import { NavigationTrail } from "./navigation.js";
import { type PathOptions, PointerPath } from "./pointer-path.js";
import { Typing } from "./typing.js";

/** An event and when its last input happened. */
export interface CapturedEvent {
  readonly event: BehavioralEvent;
  readonly occurredAt: Date;
}

/** How much of the next event is gathered. */
export interface CaptureProgress {
  readonly keys: number;
  readonly points: number;
}

export interface CaptureOptions {
  /** Where pointer movement and, without `typingTarget`, keys are observed. */
  readonly target: EventTarget;
  /** Where keys are observed, when that is not everywhere in `target`. */
  readonly typingTarget?: EventTarget;
  /** UUID of the session. */
  readonly sessionId: string;
  readonly onEvent: (captured: CapturedEvent) => void;
  readonly onProgress?: (progress: CaptureProgress) => void;
  /** Asked when Enter ends a phrase; false drops the phrase. */
  readonly accept?: () => boolean;
  /** Names a known text, so that the same positions are compared; never the text itself. */
  readonly promptId?: string;
  /** Where and with what the person works. Default: the browser's own name. */
  readonly context?: () => ContextualData;
  readonly pointer?: PathOptions;
  /** A pause that ends free text, milliseconds. */
  readonly pauseMs?: number;
  /** Phrases of fewer keys are dropped. */
  readonly minKeys?: number;
  /** False also takes events that scripts made: for tests and demonstrations. */
  readonly trustedOnly?: boolean;
  /** Milliseconds on the clock of `event.timeStamp`. */
  readonly now?: () => number;
}

/** A running capture. */
export interface Capture {
  readonly paused: boolean;
  /** From now on the known text `promptId` is typed, or free text. */
  setPrompt(promptId: string | undefined): void;
  /** Ends the phrase under way: the prompt was completed without Enter. */
  finishPhrase(): void;
  /** Drops the phrase under way: it was mistyped. */
  discardPhrase(): void;
  /** A view opened; a route pattern, never an address with data in it. */
  setView(view: string): void;
  /** Observes nothing until `resume`; what was gathered for the next event is forgotten. */
  pause(): void;
  resume(): void;
  /** Stops observing and forgets everything that was not reported. */
  stop(): void;
}

/** Observes how a person types and moves in `target` and cuts it into events. Nothing typed is read, kept or sent. */
export function createCapture(options: CaptureOptions): Capture {
  return new BehaviorCapture(options);
}

/** How often a pause in typing is looked for, milliseconds. */
const TICK_MS = 500;

class BehaviorCapture implements Capture {
  readonly #options: CaptureOptions;
  readonly #now: () => number;
  readonly #typing: Typing;
  readonly #path: PointerPath;
  readonly #trail = new NavigationTrail();
  readonly #startedAt: number;
  readonly #unbind: () => void;
  readonly #ticker: ReturnType<typeof setInterval>;
  #paused = false;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#startedAt = this.#now();
    this.#path = new PointerPath(options.pointer);
    this.#typing = new Typing({
      pauseMs: options.pauseMs ?? 3_000,
      minKeys: options.minKeys ?? 6,
      accept: options.accept ?? (() => true),
      onPattern: (pattern) => this.#report([pattern], []),
    });
    this.#typing.promptId = options.promptId;
    this.#unbind = bindDom(options.target, options.typingTarget ?? options.target, options.trustedOnly ?? true, {
      press: (press) => this.#observe(() => this.#typing.press(press)),
      release: (id, at) => this.#observe(() => this.#typing.release(id, at)),
      focusLost: () => this.#observe(() => this.#typing.abandonOpen()),
      composing: () => this.#observe(() => this.#typing.discard()),
      pointer: (sample) =>
        this.#observe(() => {
          const pattern = this.#path.add(sample);
          if (pattern !== undefined) this.#report([], [pattern]);
        }),
    });
    this.#ticker = setInterval(() => this.#typing.tick(this.#now()), TICK_MS);
  }

  get paused(): boolean {
    return this.#paused;
  }

  setPrompt(promptId: string | undefined): void {
    this.#typing.clear();
    this.#typing.promptId = promptId;
  }

  finishPhrase(): void {
    this.#typing.finish();
  }

  discardPhrase(): void {
    this.#observe(() => this.#typing.discard());
  }

  setView(view: string): void {
    this.#trail.open(view, this.#now());
  }

  pause(): void {
    this.#paused = true;
    this.#forget();
  }

  resume(): void {
    this.#paused = false;
  }

  stop(): void {
    this.#unbind();
    clearInterval(this.#ticker);
    this.#forget();
    this.#trail.clear();
  }

  #forget(): void {
    this.#typing.clear();
    this.#path.clear();
    this.#progress();
  }

  #observe(note: () => void): void {
    if (this.#paused) return;
    note();
    this.#progress();
  }

  #progress(): void {
    this.#options.onProgress?.({ keys: this.#typing.size, points: this.#path.size });
  }

  #report(keystrokeDynamics: KeystrokePattern[], mouseDynamics: MousePattern[]): void {
    const now = this.#now();
    const seconds = Math.round((now - this.#startedAt) / 1000);
    const navigationPattern = this.#trail.take(now);
    const contextualData = (this.#options.context ?? browserContext)();
    this.#options.onEvent({
      occurredAt: new Date(),
      event: {
        eventId: randomId(),
        sessionId: this.#options.sessionId,
        source: "behavioral",
        behavioralMetrics: {
          mouseDynamics,
          keystrokeDynamics,
          ...(navigationPattern === undefined ? {} : { navigationPattern }),
          sessionDuration: Math.min(Math.max(0, seconds), LIMITS.sessionSeconds),
        },
        contextualData,
      },
    });
  }
}

function browserContext(): ContextualData {
  return { userAgent: navigator.userAgent.slice(0, 512) };
}
