import type { AlertData } from "@behaviorguard/capture";
import { levelOf } from "../levels.js";
import type { Observed } from "../state.js";

const MODELS = [
  ["anomalyScore", "Autoencoder", "Is this event unlike anything of yours?", 40],
  ["sequenceThreatScore", "LSTM", "Does it follow from your last 50 events?", 30],
  ["patternAnomalyScore", "Transformer", "Does the whole pattern still fit you?", 30],
] as const satisfies readonly (readonly [keyof AlertData, string, string, number])[];

/** What each of the three models says, and how much it counts. */
export function Models({ latest }: { latest: Observed | undefined }) {
  return (
    <section className="card models" aria-labelledby="models-title">
      <h2 id="models-title">Three models, one score</h2>
      <ul>
        {MODELS.map(([field, name, question, weight]) => {
          const score = latest?.alert === undefined ? undefined : (latest.alert[field] ?? 0);
          return (
            <li key={field} data-level={score === undefined || latest?.learning ? "learning" : levelOf(score)}>
              <div className="model-head">
                <strong>{name}</strong>
                <span className="model-score">{score === undefined ? "–" : `${Math.round(score * 100)} %`}</span>
              </div>
              <svg className="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
                <rect width="100" height="6" className="meter-track" />
                <rect width={(score ?? 0) * 100} height="6" fill="currentColor" />
              </svg>
              <p>
                {question} <span className="model-weight">Counts {weight} %.</span>
              </p>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
