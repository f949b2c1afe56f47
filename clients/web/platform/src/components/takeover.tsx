import type { AlertData } from "@behaviorguard/capture";
import { LEVEL_TEXT } from "../levels.js";
import { LevelIcon } from "./icons.js";

interface Props {
  alert: AlertData | undefined;
  locked: boolean;
  onDismiss: () => void;
  onErase: () => void;
}

/** The page's reaction when somebody else seems to have taken over. The region is always there, so that it is read out. */
export function Takeover({ alert, locked, onDismiss, onErase }: Props) {
  return (
    <div role="alert">
      {alert !== undefined && (
        <div className="takeover" data-level={alert.threatLevel}>
          <LevelIcon level={alert.threatLevel} className="takeover-icon" />
          <div>
            <h2>{locked ? "Session ended: this is not the person it learnt" : "Please confirm that it is you"}</h2>
            <p>
              {LEVEL_TEXT[alert.threatLevel].meaning} {alert.reasons?.[0]?.text}
            </p>
            {alert.recommendations !== undefined && alert.recommendations.length > 0 && (
              <ul className="takeover-steps">
                {alert.recommendations.map((text) => (
                  <li key={text}>{text}</li>
                ))}
              </ul>
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
      )}
    </div>
  );
}
