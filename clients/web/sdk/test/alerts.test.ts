import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { watchAlerts } from "../src/index.js";
import { FakeSocket } from "./fake-socket.js";

const alert = (eventId: string, resumeToken: string) => ({ type: "threat_alert", data: { eventId }, resumeToken });

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.made = [];
});
afterEach(() => vi.useRealTimers());

describe("watchAlerts", () => {
  it("asks once, then goes on behind the last alert after a drop", () => {
    const onAlert = vi.fn();
    const watch = watchAlerts({
      url: "https://localhost/ws",
      userIds: ["u"],
      sessionId: "s",
      minimumLevel: "normal",
      onAlert,
      socket: (url) => new FakeSocket(url),
    });
    expect(FakeSocket.last.url).toBe("wss://localhost/ws");
    FakeSocket.last.open();
    expect(FakeSocket.last.sent).toEqual([{ userIds: ["u"], sessionId: "s", minimumLevel: "normal" }]);
    FakeSocket.last.receive(alert("1", "token-1"));
    FakeSocket.last.receive("noise");
    FakeSocket.last.drop();
    vi.advanceTimersByTime(1_000);
    FakeSocket.last.open();
    expect(FakeSocket.last.sent[0]).toMatchObject({ resumeToken: "token-1" });
    FakeSocket.last.drop(4003); // the token is too old by now
    vi.advanceTimersByTime(1_000);
    FakeSocket.last.open();
    expect(FakeSocket.last.sent[0]).not.toHaveProperty("resumeToken");
    watch.close();
    vi.advanceTimersByTime(60_000);
    expect(FakeSocket.made).toHaveLength(3);
    expect(onAlert).toHaveBeenCalledOnce();
  });
});
