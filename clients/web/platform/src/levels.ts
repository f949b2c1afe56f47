import type { ThreatLevel } from "@behaviorguard/capture";

/** Scores at which the levels begin, from the contract. */
export const THRESHOLDS = { suspicious: 0.3, threat: 0.7, critical: 0.9 } as const;

/** What a level means, in words for the person in front of the page. */
export const LEVEL_TEXT: Record<ThreatLevel, { name: string; verdict: string; meaning: string }> = {
  normal: { name: "Normal", verdict: "This is you", meaning: "The rhythm matches what was learnt." },
  suspicious: {
    name: "Suspicious",
    verdict: "Not quite like you",
    meaning: "Different from your normal, but not by enough to act.",
  },
  threat: {
    name: "Threat",
    verdict: "Probably somebody else",
    meaning: "An application would now ask you to sign in again.",
  },
  critical: { name: "Critical", verdict: "Somebody else", meaning: "An application would now end the session." },
};

export function levelOf(score: number): ThreatLevel {
  if (score > THRESHOLDS.critical) return "critical";
  if (score > THRESHOLDS.threat) return "threat";
  return score >= THRESHOLDS.suspicious ? "suspicious" : "normal";
}

/** True from the level at which an application would act. */
export function isTakeover(level: ThreatLevel): boolean {
  return level === "threat" || level === "critical";
}
