import { describe, expect, it } from "vitest";
import type { MousePattern } from "../src/contract.js";
import { PointerPath } from "../src/pointer-path.js";

/** A hand on a slow circle, reported `hz` times a second for `seconds`. */
function circle(hz: number, seconds: number, phase = 0, path = new PointerPath()): MousePattern[] {
  const windows: MousePattern[] = [];
  for (let at = phase; at <= seconds * 1000; at += 1000 / hz) {
    const angle = at / 700;
    const window = path.add({ at, x: 400 + 200 * Math.cos(angle), y: 300 + 200 * Math.sin(angle), action: "move" });
    if (window !== undefined) windows.push(window);
  }
  return windows;
}

describe("PointerPath", () => {
  it("makes windows of 40 points, 100 ms apart, from zero", () => {
    const [window] = circle(125, 5);
    expect(window?.timeMs).toEqual(Array.from({ length: 40 }, (_, i) => i * 100));
    expect([window?.xPx[0], window?.yPx[0]]).toEqual([0, 0]);
    for (const column of [window?.xPx, window?.yPx, window?.actions]) expect(column).toHaveLength(40);
  });

  it("does not show how often the device reports", () => {
    const slow = circle(60, 5)[0] as MousePattern;
    for (const hz of [30, 125, 1000]) {
      const other = circle(hz, 5)[0] as MousePattern;
      expect(other.timeMs).toEqual(slow.timeMs);
      for (const [i, x] of other.xPx.entries()) expect(Math.abs(x - (slow.xPx[i] ?? 0))).toBeLessThanOrEqual(2);
    }
  });

  it("notes where the pointer rested, not a glide across the rest", () => {
    const path = new PointerPath({ points: 3 });
    path.add({ at: 0, x: 0, y: 0, action: "move" });
    path.add({ at: 50, x: 10, y: 0, action: "move" });
    path.add({ at: 5_020, x: 20, y: 0, action: "move" });
    const window = path.add({ at: 5_100, x: 100, y: 0, action: "move" });
    expect(window).toMatchObject({ timeMs: [0, 5_000, 5_100], xPx: [0, 10, 100] });
  });

  it("keeps clicks at their own time and place", () => {
    const path = new PointerPath({ points: 3 });
    path.add({ at: 0, x: 5, y: 5, action: "move" });
    path.add({ at: 33, x: 8, y: 5, action: "press" });
    const window = path.add({ at: 61, x: 8, y: 6, action: "release" });
    expect(window).toEqual({
      timeMs: [0, 33, 61],
      xPx: [0, 3, 3],
      yPx: [0, 0, 1],
      actions: ["move", "press", "release"],
    });
  });

  it("thins scrolling", () => {
    const path = new PointerPath();
    path.add({ at: 0, x: 0, y: 0, action: "move" });
    for (let at = 10; at < 510; at += 10) path.add({ at, x: 0, y: 0, action: "scroll" });
    expect(path.size).toBe(6);
  });

  it("begins anew after a long rest and never lets time fall", () => {
    const path = new PointerPath({ points: 3 });
    path.add({ at: 0, x: 0, y: 0, action: "move" });
    path.add({ at: 120_000, x: 9, y: 9, action: "move" });
    expect(path.size).toBe(1);
    path.add({ at: 120_200, x: 10, y: 9, action: "press" });
    const window = path.add({ at: 120_100, x: 11, y: 9, action: "release" });
    expect(window?.timeMs).toEqual([0, 200, 200]);
  });
});
