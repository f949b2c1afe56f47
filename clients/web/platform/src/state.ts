import type { AlertData, BehavioralEvent, ConnectionState, KeystrokePattern, Outcome } from "@behaviorguard/capture";
import type { Baseline, Problem, RiskProfile, Trial } from "./api.js";
import { isTakeover } from "./levels.js";

/** Where a visitor is. `locked`: a critical alert ended the session in the demonstration. */
export type Phase = "welcome" | "starting" | "learning" | "watching" | "locked";

/** One event on its way or scored. */
export interface Observed {
  readonly eventId: string;
  readonly kind: "typing" | "mouse";
  /** Keys or points. */
  readonly size: number;
  readonly typed?: KeystrokePattern | undefined;
  /** The page's own clock, milliseconds; latency is measured from here. */
  readonly sentAt: number;
  readonly at: Date;
  readonly madeUp: boolean;
  readonly preliminaryRisk?: number;
  readonly failure?: string;
  readonly alert?: AlertData;
  /** Milliseconds from leaving this page to the alert's arrival. */
  readonly latencyMs?: number;
  /** True when it was scored while the person was still being learnt. */
  readonly learning?: boolean;
}

export interface State {
  readonly phase: Phase;
  readonly trial?: Trial;
  readonly baseline: Baseline;
  readonly riskScore: number;
  /** Oldest first, the latest `KEPT`. */
  readonly events: readonly Observed[];
  readonly keys: number;
  readonly points: number;
  readonly stream: ConnectionState;
  readonly alerts: ConnectionState;
  /** The alert that the page reacts to, until it is dismissed. */
  readonly takeover?: AlertData;
  readonly problem?: { readonly message: string; readonly next: string };
  readonly notice?: string;
}

export const KEPT = 120;

export const INITIAL: State = {
  phase: "welcome",
  baseline: { typingSamples: 0, mouseSamples: 0, samplesNeeded: 0, enrolling: true },
  riskScore: 0.5,
  events: [],
  keys: 0,
  points: 0,
  stream: "closed",
  alerts: "closed",
};

export type Action =
  | { type: "starting" }
  | { type: "started"; trial: Trial; profile?: RiskProfile }
  | { type: "failed"; problem: Problem }
  | { type: "ended"; problem?: { message: string; next: string }; notice?: string }
  | { type: "progress"; keys: number; points: number }
  | { type: "captured"; event: BehavioralEvent; at: Date; madeUp: boolean }
  | { type: "sent"; eventId: string; now: number }
  | { type: "outcome"; outcome: Outcome }
  | { type: "alert"; alert: AlertData; now: number }
  | { type: "profile"; profile: RiskProfile }
  | { type: "connection"; which: "stream" | "alerts"; state: ConnectionState }
  | { type: "dismissed" };

export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "starting":
      return { ...INITIAL, phase: "starting" };
    case "started":
      return withProfile({ ...INITIAL, phase: "learning", trial: action.trial }, action.profile);
    case "failed":
      return { ...state, phase: state.phase === "starting" ? "welcome" : state.phase, problem: action.problem };
    case "ended": {
      const { problem, notice } = action;
      return { ...INITIAL, ...(problem === undefined ? {} : { problem }), ...(notice === undefined ? {} : { notice }) };
    }
    case "progress":
      return { ...state, keys: action.keys, points: action.points };
    case "captured":
      return { ...state, events: [...state.events, observed(action)].slice(-KEPT) };
    case "sent":
      return change(state, action.eventId, { sentAt: action.now });
    case "outcome":
      return withOutcome(state, action.outcome);
    case "alert":
      return withAlert(state, action.alert, action.now);
    case "profile":
      return withProfile(state, action.profile);
    case "connection":
      return { ...state, [action.which]: action.state };
    case "dismissed": {
      const { takeover: _, problem: __, ...rest } = state;
      return { ...rest, phase: state.phase === "locked" ? "watching" : state.phase };
    }
  }
}

/** Scored events, oldest first. */
export function scored(state: State): (Observed & { alert: AlertData })[] {
  return state.events.filter((event): event is Observed & { alert: AlertData } => event.alert !== undefined);
}

function observed({ event, at, madeUp }: Extract<Action, { type: "captured" }>): Observed {
  const { keystrokeDynamics, mouseDynamics } = event.behavioralMetrics;
  const typed = keystrokeDynamics[0];
  const size = typed?.keyClasses.length ?? mouseDynamics[0]?.timeMs.length ?? 0;
  const kind = typed === undefined ? "mouse" : "typing";
  return { eventId: event.eventId, kind, size, typed, sentAt: Number.NaN, at, madeUp };
}

function change(state: State, eventId: string, patch: Partial<Observed>): State {
  return {
    ...state,
    events: state.events.map((event) => (event.eventId === eventId ? { ...event, ...patch } : event)),
  };
}

function withOutcome(state: State, outcome: Outcome): State {
  switch (outcome.kind) {
    case "accepted":
      return change(state, outcome.eventId, { preliminaryRisk: outcome.answer.preliminaryRisk ?? 0 });
    case "refused":
      return {
        ...change(state, outcome.eventId, { failure: outcome.refusal.message }),
        problem: {
          message: `An event was refused: ${outcome.refusal.message}`,
          next: outcome.refusal.suggestedAction ?? "Type the phrase again.",
        },
      };
    case "dropped":
      return change(state, outcome.eventId, { failure: outcome.message });
  }
}

function withAlert(state: State, alert: AlertData, now: number): State {
  const event = state.events.find((candidate) => candidate.eventId === alert.eventId);
  if (event === undefined || event.alert !== undefined) return state; // from before a reload, or sent twice
  const learning = state.phase === "learning";
  const { problem: _, ...healthy } = state; // whatever was wrong, events come through
  const next = change(healthy, alert.eventId, {
    alert,
    learning,
    ...(Number.isNaN(event.sentAt) ? {} : { latencyMs: now - event.sentAt }),
  });
  if (learning || !isTakeover(alert.threatLevel)) return next;
  return { ...next, takeover: alert, phase: alert.threatLevel === "critical" ? "locked" : next.phase };
}

function withProfile(state: State, profile: RiskProfile | undefined): State {
  if (profile === undefined) return state;
  const { enrolling, typingSamples, samplesNeeded } = profile.baseline;
  // The server also stops enrolling once the pointer alone is learnt; this page is about typing.
  const learnt = state.phase === "learning" && !enrolling && typingSamples >= samplesNeeded;
  return { ...state, ...profile, phase: learnt ? "watching" : state.phase };
}
