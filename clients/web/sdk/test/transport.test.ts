import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { AnalyzeRealtimeRequest } from "../src/contract.js";
import { type CapturedEvent, createTransport, type Outcome, randomId, type Transport } from "../src/index.js";
import { FakeSocket } from "./fake-socket.js";

let outcomes: Outcome[];
let transport: Transport;

function captured(): CapturedEvent {
  const metrics = { mouseDynamics: [], keystrokeDynamics: [], sessionDuration: 1 };
  const event = {
    eventId: randomId(),
    sessionId: randomId(),
    source: "behavioral",
    behavioralMetrics: metrics,
  } as const;
  return { event, occurredAt: new Date() };
}
function start(options: { capacity?: number; fetch?: typeof fetch } = {}): void {
  transport = createTransport({
    userId: randomId(),
    url: "http://localhost/api/threat/stream",
    onOutcome: (outcome) => outcomes.push(outcome),
    socket: (url) => new FakeSocket(url),
    backoff: { firstMs: 100, random: () => 1 },
    fetch: () => Promise.reject(new TypeError("offline")),
    ...options,
  });
}
const idsSent = (socket: FakeSocket) =>
  (socket.sent as { event: AnalyzeRealtimeRequest }[]).map(({ event }) => event.eventData.eventId);

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.made = [];
  outcomes = [];
});
afterEach(() => {
  transport.close();
  vi.useRealTimers();
});

describe("createTransport", () => {
  it("sends what waited once the stream opens, and tells the answer", () => {
    start();
    const sample = captured();
    transport.send(sample);
    expect(FakeSocket.last.url).toBe("ws://localhost/api/threat/stream");
    FakeSocket.last.open();
    const { eventId } = sample.event;
    expect(idsSent(FakeSocket.last)).toEqual([eventId]);
    const answer = { eventId, preliminaryRisk: 0.2, processingStatus: "queued_for_morpheus" } as const;
    FakeSocket.last.receive({ accepted: answer });
    expect(outcomes).toEqual([{ kind: "accepted", eventId, answer }]);
    expect(transport.pending).toBe(0);
  });

  it("sends unanswered events again after a drop, with the same ids", () => {
    start();
    FakeSocket.last.open();
    transport.send(captured());
    transport.send(captured());
    const [first, second] = idsSent(FakeSocket.last);
    FakeSocket.last.receive({ accepted: { eventId: first, processingStatus: "queued_for_morpheus" } });
    FakeSocket.last.drop();
    vi.advanceTimersByTime(100);
    FakeSocket.last.open();
    expect(idsSent(FakeSocket.last)).toEqual([second]);
  });

  it("tells refusals; one without an id belongs to the oldest event", () => {
    start();
    FakeSocket.last.open();
    const sample = captured();
    transport.send(sample);
    FakeSocket.last.receive({ refused: { code: 3, reason: "ERROR_REASON_INVALID_FIELD", message: "no" } });
    expect(outcomes).toMatchObject([{ kind: "refused", eventId: sample.event.eventId, refusal: { message: "no" } }]);
  });

  it("tries again when the server asks for it, but not for ever", () => {
    start();
    FakeSocket.last.open();
    const { event } = captured();
    transport.send({ event, occurredAt: new Date() });
    for (let i = 0; i < 4; i++) {
      FakeSocket.last.receive({
        refused: { eventId: event.eventId, code: 8, reason: "ERROR_REASON_OVERLOADED", message: "later" },
      });
      vi.advanceTimersByTime(1_000);
    }
    expect(FakeSocket.last.sent).toHaveLength(4);
    expect(outcomes).toMatchObject([{ kind: "refused" }]);
  });

  it("keeps a bounded number of events and says which it dropped", () => {
    start({ capacity: 2 });
    const samples = [captured(), captured(), captured()];
    for (const sample of samples) transport.send(sample);
    expect(transport.pending).toBe(2);
    expect(outcomes).toMatchObject([{ kind: "dropped", eventId: samples[0]?.event.eventId }]);
  });

  it("falls back to single requests when the stream cannot be opened", async () => {
    const answer = { eventId: "", processingStatus: "queued_for_morpheus" };
    const post = vi.fn<typeof fetch>(async () => new Response(JSON.stringify(answer)));
    start({ fetch: post });
    transport.send(captured());
    for (let i = 0; i < 3; i++) {
      FakeSocket.last.drop();
      await vi.advanceTimersByTimeAsync(1_000);
    }
    expect(post).toHaveBeenCalledOnce();
    expect(outcomes).toMatchObject([{ kind: "accepted" }]);
  });

  it("does not send again what the server could not read", () => {
    start();
    FakeSocket.last.open();
    transport.send(captured());
    transport.send(captured());
    const [, second] = idsSent(FakeSocket.last);
    FakeSocket.last.drop(4003);
    vi.advanceTimersByTime(1_000);
    FakeSocket.last.open();
    expect(outcomes).toMatchObject([{ kind: "refused" }]);
    expect(idsSent(FakeSocket.last)).toEqual([second]);
  });

  it("gives up when the server ends the session", () => {
    start();
    transport.send(captured());
    FakeSocket.last.drop(4016);
    vi.advanceTimersByTime(60_000);
    expect(FakeSocket.made).toHaveLength(1);
    expect(outcomes).toMatchObject([{ kind: "dropped" }]);
  });

  it("makes a new connection when answers stop coming", () => {
    start();
    FakeSocket.last.open();
    transport.send(captured());
    vi.advanceTimersByTime(10_000 + 100);
    expect(FakeSocket.made).toHaveLength(2);
  });
});
