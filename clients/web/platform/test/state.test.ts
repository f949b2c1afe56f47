import type { AlertData, BehavioralEvent, ThreatLevel } from "@behaviorguard/capture";
import { describe, expect, it } from "vitest";
import { INITIAL, KEPT, reduce, type State } from "../src/state.js";

const trial = { userId: "u", sessionId: "s", expiresAt: "2026-01-01T01:00:00Z" };
const profile = (typingSamples: number, enrolling: boolean) => ({
  riskScore: 0.2,
  baseline: { typingSamples, mouseSamples: 0, samplesNeeded: 12, enrolling },
});

function event(eventId: string): BehavioralEvent {
  const typed = { keyClasses: ["enter" as const], holdMs: [80], flightMs: [0] };
  const behavioralMetrics = { mouseDynamics: [], keystrokeDynamics: [typed], sessionDuration: 1 };
  return { eventId, sessionId: "s", source: "behavioral", behavioralMetrics };
}
function alert(eventId: string, threatLevel: ThreatLevel): AlertData {
  const timestamp = "2026-01-01T00:00:00Z";
  return { eventId, threatLevel, userId: "u", sessionId: "s", correlationId: "c", timestamp, threatScore: 0.95 };
}
function play(state: State, ...ids: string[]): State {
  return ids.reduce((now, id) => {
    const captured = reduce(now, { type: "captured", event: event(id), at: new Date(0), madeUp: false });
    return reduce(captured, { type: "sent", eventId: id, now: 100 });
  }, state);
}
const learning = reduce(INITIAL, { type: "started", trial, profile: profile(3, true) });
const watching = reduce(learning, { type: "profile", profile: profile(12, false) });

describe("reduce", () => {
  it("watches once the typing is learnt, not before", () => {
    expect(learning.phase).toBe("learning");
    expect(reduce(learning, { type: "profile", profile: profile(4, false) }).phase).toBe("learning");
    expect(watching.phase).toBe("watching");
  });

  it("measures how long an answer took", () => {
    const state = reduce(play(watching, "e"), { type: "alert", alert: alert("e", "normal"), now: 131 });
    expect(state.events[0]).toMatchObject({ latencyMs: 31, learning: false });
  });

  it("does not react while the person is still being learnt", () => {
    const state = reduce(play(learning, "e"), { type: "alert", alert: alert("e", "critical"), now: 131 });
    expect(state).toMatchObject({ phase: "learning" });
    expect(state.takeover).toBeUndefined();
  });

  it("asks for confirmation at a threat, locks at a critical one, and goes on when told", () => {
    let state = reduce(play(watching, "e", "f"), { type: "alert", alert: alert("e", "threat"), now: 131 });
    expect(state).toMatchObject({ phase: "watching", takeover: { eventId: "e" } });
    state = reduce(state, { type: "alert", alert: alert("f", "critical"), now: 140 });
    expect(state).toMatchObject({ phase: "locked", takeover: { eventId: "f" } });
    state = reduce(state, { type: "dismissed" });
    expect(state.phase).toBe("watching");
    expect(state.takeover).toBeUndefined();
  });

  it("counts an alert once, and none of an event that it does not know", () => {
    const once = reduce(play(watching, "e"), { type: "alert", alert: alert("e", "normal"), now: 131 });
    expect(reduce(once, { type: "alert", alert: alert("e", "critical"), now: 150 })).toBe(once);
    expect(reduce(once, { type: "alert", alert: alert("unknown", "critical"), now: 150 })).toBe(once);
  });

  it("shows a refusal with what to do next, until events come through again", () => {
    const refusal = { code: 3, reason: "r", message: "too old", suggestedAction: "Set the clock." };
    const refused = reduce(play(watching, "e", "f"), {
      type: "outcome",
      outcome: { kind: "refused", eventId: "e", refusal },
    });
    expect(refused.events[0]?.failure).toBe("too old");
    expect(refused.problem?.next).toBe("Set the clock.");
    expect(reduce(refused, { type: "alert", alert: alert("f", "normal"), now: 1 }).problem).toBeUndefined();
  });

  it("keeps a bounded number of events", () => {
    const ids = Array.from({ length: KEPT + 5 }, (_, i) => `e${i}`);
    expect(play(watching, ...ids).events).toHaveLength(KEPT);
  });
});
