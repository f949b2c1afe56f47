import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Capture, type CapturedEvent, type CaptureOptions, createCapture } from "../src/index.js";

let input: HTMLInputElement;
let events: CapturedEvent[];
let capture: Capture;

function start(options: Partial<CaptureOptions> = {}): void {
  capture = createCapture({
    target: document,
    sessionId: "8f0e4c0c-5a59-4a2a-9f25-0d8a6a4f6c11",
    trustedOnly: false,
    minKeys: 1,
    onEvent: (event) => events.push(event),
    ...options,
  });
}

function fire(event: Event, at: number, target: EventTarget = input): void {
  Object.defineProperty(event, "timeStamp", { value: at });
  target.dispatchEvent(event);
}
function key(type: "keydown" | "keyup", name: string, at: number, init: KeyboardEventInit = {}): void {
  const code = name.length === 1 ? `Key${name.toUpperCase()}` : name;
  fire(new KeyboardEvent(type, { key: name, code, bubbles: true, ...init }), at);
}
function tap(name: string, at: number, hold = 80): void {
  key("keydown", name, at);
  key("keyup", name, at + hold);
}
const typed = () => events.flatMap(({ event }) => event.behavioralMetrics.keystrokeDynamics);

beforeEach(() => {
  vi.useFakeTimers();
  events = [];
  document.body.innerHTML = '<input id="field"><input id="secret" type="password">';
  input = document.querySelector("#field") as HTMLInputElement;
});
afterEach(() => {
  capture.stop();
  vi.useRealTimers();
});

describe("createCapture", () => {
  it("reports a phrase when Enter is released, without a trace of what was typed", () => {
    start({ promptId: "phrase-1" });
    for (const [i, letter] of [..."zebra"].entries()) tap(letter, i * 150);
    key("keydown", "Enter", 800);
    expect(events).toHaveLength(0);
    key("keyup", "Enter", 870);
    expect(typed()[0]).toMatchObject({ promptId: "phrase-1", flightMs: [0, 150, 150, 150, 150, 200] });
    expect(typed()[0]?.keyClasses.at(-1)).toBe("enter");
    expect(JSON.stringify(events)).not.toMatch(/zebra|"z"|KeyZ/i);
  });

  it("ignores auto-repeat", () => {
    start();
    key("keydown", "a", 0);
    for (let at = 500; at < 900; at += 30) key("keydown", "a", at, { repeat: true });
    key("keyup", "a", 900);
    tap("Enter", 1000);
    expect(typed()[0]?.holdMs).toEqual([900, 80]);
  });

  it("lets the next phrase begin before Enter is released", () => {
    start();
    tap("a", 0);
    key("keydown", "Enter", 200);
    key("keydown", "b", 260);
    key("keyup", "Enter", 300);
    key("keyup", "b", 340);
    tap("Enter", 500);
    expect(typed().map((pattern) => pattern.keyClasses.length)).toEqual([2, 2]);
  });

  it("does not wait for releases that the blur swallowed", () => {
    start({ promptId: "phrase-1" });
    tap("a", 0);
    key("keydown", "Enter", 200);
    fire(new Event("blur"), 220, window);
    expect(typed()[0]?.holdMs).toEqual([80]);
    expect(typed()[0]).not.toHaveProperty("promptId");
  });

  it("does not mind that another element loses the focus", () => {
    start();
    key("keydown", "a", 0);
    fire(new FocusEvent("blur"), 20, document.querySelector("#secret") as Element);
    key("keyup", "a", 80);
    tap("Enter", 200);
    expect(typed()[0]?.holdMs).toEqual([80, 80]);
  });

  it("drops a phrase that the page does not accept", () => {
    start({ accept: () => false });
    tap("a", 0);
    tap("Enter", 200);
    expect(events).toHaveLength(0);
  });

  it("drops what an input method composes", () => {
    start();
    tap("a", 0);
    key("keydown", "Process", 100, { isComposing: true });
    tap("b", 300);
    tap("Enter", 400);
    expect(typed()[0]?.holdMs).toHaveLength(2);
  });

  it("tells no key apart in a password field", () => {
    start();
    input = document.querySelector("#secret") as HTMLInputElement;
    tap("a", 0);
    tap("l", 100);
    tap("Enter", 200);
    expect(typed()[0]?.keyClasses).toEqual(["unspecified", "unspecified", "enter"]);
  });

  it("observes nothing in ignored elements, while paused, and after the stop", () => {
    start();
    input.setAttribute("data-capture-ignore", "");
    tap("Enter", 0);
    input.removeAttribute("data-capture-ignore");
    capture.pause();
    tap("Enter", 100);
    capture.resume();
    capture.stop();
    tap("Enter", 200);
    expect(events).toHaveLength(0);
  });

  it("takes no event that a script made, unless told to", () => {
    start({ trustedOnly: true });
    tap("Enter", 0);
    expect(events).toHaveLength(0);
  });

  it("ends free text after a pause", () => {
    let now = 0;
    start({ now: () => now, pauseMs: 1_000 });
    tap("a", 10);
    now = 5_000;
    vi.advanceTimersByTime(600);
    expect(typed()).toHaveLength(1);
  });

  it("reports a window of pointer movement, and none from fingers", () => {
    const progress = vi.fn();
    start({ onProgress: progress });
    for (const pointerType of ["touch", "mouse"]) {
      for (let at = 0; at <= 4_000; at += 16) {
        fire(new PointerEvent("pointermove", { pointerType, clientX: at / 10, clientY: 20, bubbles: true }), at);
      }
    }
    const windows = events.flatMap(({ event }) => event.behavioralMetrics.mouseDynamics);
    expect(windows).toHaveLength(1);
    expect(windows[0]?.actions).toHaveLength(40);
    expect(progress).toHaveBeenCalledWith({ keys: 0, points: 39 });
  });

  it("takes touches of an on-screen keypad as keystrokes with pressure", () => {
    start();
    document.body.innerHTML = '<button data-key-class="digit"></button><button data-key-class="enter"></button>';
    for (const [i, button] of [...document.querySelectorAll("button")].entries()) {
      const touch = { pointerType: "touch", pointerId: 3, pressure: 0.5, width: 20, height: 18, bubbles: true };
      fire(new PointerEvent("pointerdown", touch), i * 200, button);
      fire(new PointerEvent("pointerup", touch), i * 200 + 90, button);
    }
    expect(typed()[0]).toEqual({
      keyClasses: ["digit", "enter"],
      holdMs: [90, 90],
      flightMs: [0, 200],
      pressure: [0.5, 0.5],
      contactSize: [0.5, 0.5],
    });
  });

  it("tells views and how long they were open", () => {
    let now = 1_000;
    start({ now: () => now });
    capture.setView("orders");
    now = 4_000;
    capture.setView("order/:id");
    now = 6_000;
    tap("Enter", 0);
    expect(events[0]?.event.behavioralMetrics).toMatchObject({
      navigationPattern: { views: ["orders", "order/:id"], dwellMs: [3_000, 2_000] },
      sessionDuration: 5,
    });
  });
});
