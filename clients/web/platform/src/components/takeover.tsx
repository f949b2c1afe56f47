import type { AlertData } from "@behaviorguard/capture";
import { LEVEL_TEXT } from "../levels.js";
import { LevelIcon } from "./icons.js";

interface Props {
  alert: AlertData;
  locked: boolean;
  onDismiss: () => void;
  onErase: () => void;
}

/** The page's reaction when somebody else seems to have taken over. */
export function Takeover({ alert, locked, onDismiss, onErase }: Props) {
  const recommendations = alert.recommendations ?? [];
  return (
    <div className="takeover" data-level={alert.threatLevel}>
      <LevelIcon level={alert.threatLevel} className="takeover-icon" />
      <div>
        <h2>{locked ? "Session ended: this is not the person it learnt" : "Please confirm that it is you"}</h2>
        <p>
          {LEVEL_TEXT[alert.threatLevel].meaning} {alert.reasons?.[0]?.text}
        </p>
        {recommendations.length > 0 && (
          <p className="takeover-advice">
            <strong>Advice to the application:</strong> {recommendations.join(" ")}
          </p>
        )}
      </div>
      <div className="takeover-actions">
        <button type="button" className="button" onClick={onDismiss}>
          {locked ? "I am back: unlock" : "It is me: go on"}
        </button>
        {locked && (
          <button type="button" className="button" data-kind="quiet" onClick={onErase}>
            Erase and finish
          </button>
        )}
      </div>
    </div>
  );
}
