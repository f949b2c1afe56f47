import { PROMPT } from "./guard.js";

/** Presses the phrase's keys in `field` with the rhythm of a made-up person: slow, even, two fingers. */
export async function typePhrase(field: HTMLElement, random: () => number = Math.random): Promise<void> {
  const releases: Promise<void>[] = [];
  for (const letter of PROMPT.text) {
    const code = letter === " " ? "Space" : `Key${letter.toUpperCase()}`;
    releases.push(tap(field, letter, code, 45 + 30 * random()));
    await wait(210 + 120 * random());
  }
  releases.push(tap(field, "Enter", "Enter", 60));
  await Promise.all(releases);
}

async function tap(field: HTMLElement, key: string, code: string, holdMs: number): Promise<void> {
  field.dispatchEvent(new KeyboardEvent("keydown", { key, code, bubbles: true }));
  await wait(holdMs);
  field.dispatchEvent(new KeyboardEvent("keyup", { key, code, bubbles: true }));
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
