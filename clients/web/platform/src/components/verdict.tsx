import type { AlertData } from "@behaviorguard/capture";
import { LEVEL_TEXT } from "../levels.js";
import type { Observed } from "../state.js";
import { LevelIcon } from "./icons.js";

interface Props {
  latest: (Observed & { alert: AlertData }) | undefined;
  learning: boolean;
}

/** The level now, in words, shape, colour and number. */
export function Verdict({ latest, learning }: Props) {
  const level = learning || latest === undefined || latest.learning ? "learning" : latest.alert.threatLevel;
  const text =
    level === "learning"
      ? learning
        ? { verdict: "Getting to know you", meaning: "Scores mean little until enough phrases are learnt." }
        : { verdict: "Ready", meaning: "Type the phrase: from now on each one is judged." }
      : LEVEL_TEXT[level];
  const score = latest?.alert.threatScore ?? (latest === undefined ? undefined : 0);
  return (
    <div className="verdict" data-level={level}>
      <LevelIcon level={level} className="verdict-icon" />
      <div aria-live="polite" aria-atomic="true">
        <h2 id="risk-title">
          <span className="visually-hidden">Risk now: </span>
          {text.verdict}
        </h2>
        <p>{text.meaning}</p>
      </div>
      <dl className="figures">
        <Figure name="Risk" value={score === undefined ? "–" : `${Math.round(score * 100)} %`} />
        <Figure name="Confidence" value={percent(latest?.alert.mlConfidence)} />
        <Figure name="Answer in" value={latest?.latencyMs === undefined ? "–" : `${Math.round(latest.latencyMs)} ms`} />
      </dl>
    </div>
  );
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function percent(value: number | undefined): string {
  return value === undefined ? "–" : `${Math.round(value * 100)} %`;
}
