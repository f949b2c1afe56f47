import type { KeystrokePattern } from "@behaviorguard/capture";
import type { Observed } from "../state.js";

/** Phrases shown at most. */
const ROWS = 6;
/** The least time that a row stands for, milliseconds, so that a fast phrase does not look slow. */
const SPAN_MS = 1_500;

/** The last phrases as the system saw them, newest first: a bar is a key held down. */
export function Rhythm({ events }: { events: readonly Observed[] }) {
  const phrases = events
    .filter((event) => event.typed !== undefined)
    .slice(-ROWS)
    .reverse();
  const taps = phrases.map((event) => tapsOf(event.typed as KeystrokePattern));
  const span = Math.max(SPAN_MS, ...taps.flat().map(({ press, hold }) => press + hold));
  return (
    <figure className="rhythm">
      <figcaption>Your last phrases as the system sees them: a bar is a key held down</figcaption>
      <ol aria-hidden="true">
        {Array.from({ length: ROWS }, (_, i) => {
          const event = phrases[i];
          const level = event?.alert === undefined || event.learning ? "learning" : event.alert.threatLevel;
          return (
            <li key={event?.eventId ?? i} data-level={level}>
              <svg viewBox={`0 0 ${span} 100`} preserveAspectRatio="none" aria-hidden="true">
                {taps[i]?.map(({ press, hold }, k) => (
                  // biome-ignore lint/suspicious/noArrayIndexKey: a key's position in the phrase is its identity
                  <rect key={k} x={press} y="8" width={hold} height="84" rx={span / 110} ry="22" fill="currentColor" />
                ))}
              </svg>
            </li>
          );
        })}
      </ol>
    </figure>
  );
}

function tapsOf({ holdMs, flightMs }: KeystrokePattern): { press: number; hold: number }[] {
  let press = 0;
  return holdMs.map((hold, i) => {
    press += flightMs[i] ?? 0;
    return { press, hold };
  });
}
