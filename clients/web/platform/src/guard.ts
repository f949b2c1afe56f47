import { type Capture, createCapture, createTransport, type Transport, watchAlerts } from "@behaviorguard/capture";
import { eraseBehavior, Problem, riskProfile, startTrial, type Trial } from "./api.js";
import { type Action, INITIAL, reduce, type State } from "./state.js";

/** Names the phrase for the server; the phrase itself never leaves the page. */
export const PROMPT = { id: "web-quiet-harbour-1", text: "quiet harbour" } as const;

const STORED = "behaviorguard.trial";
const EXPIRED = { message: "This trial is over and its data is erased.", next: "Start a new one whenever you like." };
/** Alerts come in bursts, and the profile is written just after them. */
const PROFILE_DELAY_MS = 200;

/** One visitor's trial: capture, transport and alerts behind a state that components subscribe to. */
export class Guard {
  #state: State = INITIAL;
  readonly #listeners = new Set<() => void>();
  #capture: Capture | undefined;
  #transport: Transport | undefined;
  #alerts: { close(): void } | undefined;
  #profileTimer: ReturnType<typeof setTimeout> | undefined;
  #field: HTMLElement | undefined;
  /** Asked when Enter ends a phrase. */
  accept: () => boolean = () => true;
  /** True while the page's own made-up typist presses the keys. */
  madeUp = false;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
  readonly snapshot = (): State => this.#state;

  /** Goes on with a trial from before a reload, where there is one. */
  async resume(): Promise<void> {
    const stored = sessionStorage.getItem(STORED);
    if (stored === null) return;
    this.#dispatch({ type: "starting" });
    try {
      const trial = JSON.parse(stored) as Trial;
      this.#begin(trial, await riskProfile(trial.userId));
    } catch (error) {
      const gone = error instanceof Problem && [401, 403, 404].includes(error.status);
      if (gone) this.#end({ problem: EXPIRED });
      else this.#fail(error);
    }
  }

  async start(): Promise<void> {
    this.#dispatch({ type: "starting" });
    try {
      const trial = await startTrial();
      sessionStorage.setItem(STORED, JSON.stringify(trial));
      this.#begin(trial, await riskProfile(trial.userId));
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Keys are observed in `field` only. */
  observeTyping(field: HTMLElement): () => void {
    this.#field = field;
    this.#startCapture();
    return () => {
      this.#field = undefined;
      this.#capture?.stop();
    };
  }

  discardPhrase(): void {
    this.#capture?.discardPhrase();
  }

  /** The person says that they are back, or that it was them all along. */
  dismiss(): void {
    this.#capture?.resume();
    this.#dispatch({ type: "dismissed" });
  }

  async erase(): Promise<void> {
    const { trial } = this.#state;
    if (trial === undefined) return;
    try {
      const events = await eraseBehavior(trial.userId);
      this.#end({ notice: `Erased: what was learnt about you and ${events} scored events. Nothing is left.` });
    } catch (error) {
      this.#fail(error);
    }
  }

  #begin(trial: Trial, profile: Awaited<ReturnType<typeof riskProfile>>): void {
    this.#disconnect();
    this.#dispatch({ type: "started", trial, profile });
    this.#transport = createTransport({
      userId: trial.userId,
      onSent: (eventId) => this.#dispatch({ type: "sent", eventId, now: performance.now() }),
      onOutcome: (outcome) => this.#dispatch({ type: "outcome", outcome }),
      onState: (state) => this.#connection("stream", state),
    });
    this.#alerts = watchAlerts({
      userIds: [trial.userId],
      sessionId: trial.sessionId,
      minimumLevel: "normal",
      onState: (state) => this.#connection("alerts", state),
      onAlert: (alert) => {
        this.#dispatch({ type: "alert", alert, now: performance.now() });
        if (this.#state.phase === "locked") this.#capture?.pause();
        this.#refreshProfileSoon();
      },
    });
    this.#startCapture();
  }

  #startCapture(): void {
    const { trial } = this.#state;
    if (trial === undefined || this.#field === undefined) return;
    this.#capture?.stop();
    this.#capture = createCapture({
      target: document,
      typingTarget: this.#field,
      sessionId: trial.sessionId,
      promptId: PROMPT.id,
      trustedOnly: false, // the made-up typist's keys are events of this script
      accept: () => this.accept(),
      onProgress: ({ keys, points }) => {
        if (keys !== this.#state.keys || points !== this.#state.points)
          this.#dispatch({ type: "progress", keys, points });
      },
      onEvent: (captured) => {
        this.#dispatch({ type: "captured", event: captured.event, at: captured.occurredAt, madeUp: this.madeUp });
        this.#transport?.send(captured);
      },
    });
    this.#capture.setView("live");
  }

  #connection(which: "stream" | "alerts", state: State["stream"]): void {
    this.#dispatch({ type: "connection", which, state });
    if (state === "refused") this.#end({ problem: EXPIRED });
  }

  #refreshProfileSoon(): void {
    clearTimeout(this.#profileTimer);
    this.#profileTimer = setTimeout(() => void this.#refreshProfile(), PROFILE_DELAY_MS);
  }

  async #refreshProfile(): Promise<void> {
    const { trial } = this.#state;
    if (trial === undefined) return;
    try {
      this.#dispatch({ type: "profile", profile: await riskProfile(trial.userId) });
    } catch (error) {
      if (this.#state.trial === trial) this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    const problem =
      error instanceof Problem ? error : new Problem("Something went wrong in this page.", "Reload the page.", 0);
    this.#dispatch({ type: "failed", problem });
  }

  #end(outcome: { problem?: { message: string; next: string }; notice?: string }): void {
    sessionStorage.removeItem(STORED);
    this.#disconnect();
    this.#dispatch({ type: "ended", ...outcome });
  }

  #disconnect(): void {
    clearTimeout(this.#profileTimer);
    this.#transport?.close();
    this.#alerts?.close();
    this.#capture?.stop();
    this.#transport = undefined;
    this.#alerts = undefined;
    this.#capture = undefined;
  }

  #dispatch(action: Action): void {
    const next = reduce(this.#state, action);
    if (next === this.#state) return;
    this.#state = next;
    for (const listener of this.#listeners) listener();
  }
}
