import type { Reason } from "@behaviorguard/capture";
import type { Observed } from "../state.js";

/** Spreads at which the bar is full. */
const FULL = 6;

/** Why the last event scored as it did. */
export function Reasons({ latest }: { latest: Observed | undefined }) {
  const reasons = latest?.alert?.reasons ?? [];
  return (
    <section className="card reasons" aria-labelledby="reasons-title">
      <h2 id="reasons-title">Why</h2>
      {reasons.length === 0 ? (
        <p className="empty">
          {latest === undefined
            ? "After your first phrase, this says what stood out and how far it was from your normal."
            : "Nothing stood out: everything was within your normal."}
        </p>
      ) : (
        <ul>
          {reasons.map((reason) => (
            <ReasonItem key={reason.feature} reason={reason} />
          ))}
        </ul>
      )}
    </section>
  );
}

function ReasonItem({ reason: { text, deviation = 0, contribution, modality, simulated } }: { reason: Reason }) {
  const length = (Math.min(Math.abs(deviation), FULL) / FULL) * 50;
  return (
    <li>
      <p>{text}</p>
      <div className="reason-meta">
        <svg className="deviation" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
          <rect x="0" y="3.5" width="100" height="3" rx="1.5" className="deviation-track" />
          <rect x={deviation < 0 ? 50 - length : 50} y="1.5" width={length} height="7" className="deviation-bar" />
          <rect x="49.6" y="0" width="0.8" height="10" className="deviation-centre" />
        </svg>
        {contribution !== undefined && <span>{Math.round(contribution * 100)} % of the score</span>}
        <span className="tag">{modality}</span>
        {simulated === true && <span className="tag">simulated</span>}
      </div>
    </li>
  );
}
