import { describe, expect, it } from "vitest";
import { LIMITS } from "../src/contract.js";
import { KeystrokeRun } from "../src/keystrokes.js";

function run(...events: [kind: "down" | "up", id: string, at: number][]): KeystrokeRun {
  const keystrokes = new KeystrokeRun();
  for (const [kind, id, at] of events) {
    if (kind === "down") keystrokes.press(id, "letter_left", at);
    else keystrokes.release(id, at);
  }
  return keystrokes;
}

describe("KeystrokeRun", () => {
  it("gives hold times and press-to-press flights", () => {
    const pattern = run(["down", "A", 1000], ["up", "A", 1090.25], ["down", "B", 1150], ["up", "B", 1230]).toPattern(
      "p",
    );
    expect(pattern).toEqual({
      promptId: "p",
      keyClasses: ["letter_left", "letter_left"],
      holdMs: [90.3, 80],
      flightMs: [0, 150],
    });
  });

  it("keeps overlapping keys apart", () => {
    const pattern = run(["down", "A", 0], ["down", "B", 60], ["up", "A", 100], ["up", "B", 140]).toPattern();
    expect(pattern?.holdMs).toEqual([100, 80]);
    expect(pattern?.flightMs).toEqual([0, 60]);
  });

  it("keeps press order when the second key is released first", () => {
    const pattern = run(["down", "A", 0], ["down", "B", 60], ["up", "B", 90], ["up", "A", 200]).toPattern();
    expect(pattern?.holdMs).toEqual([200, 30]);
  });

  it("ignores a release whose press was elsewhere", () => {
    const keystrokes = new KeystrokeRun();
    expect(keystrokes.release("A", 5)).toBe(false);
    expect(keystrokes.toPattern()).toBeUndefined();
  });

  it("leaves out a key whose release was lost and no longer claims the prompt", () => {
    const keystrokes = run(["down", "A", 0], ["up", "A", 80], ["down", "B", 150], ["down", "C", 300], ["up", "C", 380]);
    expect(keystrokes.settled).toBe(false);
    keystrokes.abandonOpen();
    expect(keystrokes.settled).toBe(true);
    const pattern = keystrokes.toPattern("p");
    expect(pattern?.flightMs).toEqual([0, 300]);
    expect(pattern).not.toHaveProperty("promptId");
  });

  it("takes a second press of a held key as a lost release", () => {
    const pattern = run(["down", "A", 0], ["down", "A", 500], ["up", "A", 590]).toPattern("p");
    expect(pattern?.holdMs).toEqual([90]);
    expect(pattern).not.toHaveProperty("promptId");
  });

  it("never lets a flight be negative when the clock steps back", () => {
    const pattern = run(["down", "A", 100], ["down", "B", 90], ["up", "A", 180], ["up", "B", 190]).toPattern();
    expect(pattern?.flightMs).toEqual([0, 0]);
    expect(pattern?.holdMs).toEqual([80, 90]);
  });

  it("leaves out a key that was released before it was pressed, or held beyond the contract", () => {
    const pattern = run(["down", "A", 100], ["up", "A", 50], ["down", "B", 200], ["up", "B", 20_000]).toPattern();
    expect(pattern).toBeUndefined();
  });

  it("stays inside the contract's bounds whatever comes", () => {
    const keystrokes = new KeystrokeRun();
    for (let i = 0; i < 400; i++) {
      keystrokes.press(`K${i}`, "digit", i * 70_000);
      keystrokes.release(`K${i}`, i * 70_000 + 50);
    }
    const pattern = keystrokes.toPattern();
    expect(pattern?.holdMs).toHaveLength(LIMITS.keys);
    expect(Math.max(...(pattern?.flightMs ?? []))).toBe(LIMITS.flightMs);
  });

  it("reports touch only when every key had it, inside 0 to 1", () => {
    const keystrokes = new KeystrokeRun();
    keystrokes.press("1", "digit", 0, { pressure: 0.4, contactSize: 1.7 });
    keystrokes.release("1", 60);
    expect(keystrokes.toPattern()).toMatchObject({ pressure: [0.4], contactSize: [1] });
    keystrokes.press("2", "digit", 100);
    keystrokes.release("2", 160);
    expect(keystrokes.toPattern()).not.toHaveProperty("pressure");
  });
});
