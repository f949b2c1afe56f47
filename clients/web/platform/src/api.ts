import type { ErrorBody } from "@behaviorguard/capture";

/** The contract's `StartTrialResponse`. */
export interface Trial {
  readonly userId: string;
  readonly sessionId: string;
  readonly expiresAt: string;
}

/** The contract's `BaselineStatus`. */
export interface Baseline {
  readonly typingSamples: number;
  readonly mouseSamples: number;
  readonly samplesNeeded: number;
  readonly enrolling: boolean;
}

/** The part of the contract's `RiskProfile` that the page shows. */
export interface RiskProfile {
  readonly riskScore: number;
  readonly baseline: Baseline;
}

/** Something that went wrong, in words, with what to do next. */
export class Problem extends Error {
  constructor(
    message: string,
    readonly next: string,
    readonly status: number,
    readonly correlationId = "",
  ) {
    super(message);
  }
}

const DEADLINE_MS = 10_000;

export async function startTrial(): Promise<Trial> {
  return (await call("POST", "/api/threat/trials", { label: "live page" })) as Trial;
}

export async function riskProfile(userId: string): Promise<RiskProfile> {
  const { profile } = (await call("GET", `/api/threat/risk-profiles/${userId}`)) as { profile?: Partial<RiskProfile> };
  // JSON of protobuf may leave out zeros.
  const {
    typingSamples = 0,
    mouseSamples = 0,
    samplesNeeded = 0,
    enrolling = false,
  }: Partial<Baseline> = profile?.baseline ?? {};
  return {
    riskScore: profile?.riskScore ?? 0,
    baseline: { typingSamples, mouseSamples, samplesNeeded, enrolling },
  };
}

/** Erases everything learnt and stored about the person; returns how many scored events that were. */
export async function eraseBehavior(userId: string): Promise<number> {
  const { eventsErased } = (await call("DELETE", `/api/threat/risk-profiles/${userId}`)) as {
    eventsErased?: number | string;
  };
  return Number(eventsErased ?? 0);
}

async function call(method: string, path: string, body?: unknown): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      ...(body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
  } catch {
    throw new Problem("The server does not answer.", "Check that BehaviorGuard is running, then try again.", 0);
  }
  const answer: unknown = await response.json().catch(() => undefined);
  if (response.ok) return answer ?? {};
  const { error, suggestedAction, correlationId } = (answer ?? {}) as Partial<ErrorBody>;
  throw new Problem(
    error ?? `The server refused (${response.status}).`,
    suggestedAction ?? "Try again in a moment.",
    response.status,
    correlationId,
  );
}
