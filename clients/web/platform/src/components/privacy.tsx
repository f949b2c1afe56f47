import { PRIVACY_NOTICE } from "@behaviorguard/capture";
import { useRef } from "react";
import type { Trial } from "../api.js";

/** What is captured and what never is, side by side. */
export function Capture() {
  return (
    <div className="captured">
      <div>
        <h3>Observed</h3>
        <ul data-mark="yes">
          {PRIVACY_NOTICE.captured.map((text) => (
            <li key={text}>{text}</li>
          ))}
        </ul>
      </div>
      <div>
        <h3>Never observed</h3>
        <ul data-mark="no">
          {PRIVACY_NOTICE.never.map((text) => (
            <li key={text}>{text}</li>
          ))}
        </ul>
      </div>
    </div>
  );
}

export function Privacy({ trial, onErase }: { trial: Trial; onErase: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const expires = new Date(trial.expiresAt).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return (
    <section className="card" aria-labelledby="stored">
      <div className="card-head">
        <h2 id="stored">What is observed and stored</h2>
        <button type="button" className="button" data-kind="danger" onClick={() => dialog.current?.showModal()}>
          Erase everything
        </button>
      </div>
      <p>
        Stored under a random name that is not yours: how your typing and pointer usually behave, and the scored events
        above. All of it is erased at {expires}, or as soon as you say so.
      </p>
      <Capture />
      <dialog ref={dialog} className="dialog" aria-labelledby="erase-title">
        <h2 id="erase-title">Erase everything?</h2>
        <p>What was learnt about you and every scored event are deleted for good. The trial ends.</p>
        <form method="dialog" className="dialog-actions">
          <button type="submit" className="button" data-kind="quiet">
            Keep it
          </button>
          <button type="submit" className="button" data-kind="danger" onClick={onErase}>
            Erase everything
          </button>
        </form>
      </dialog>
    </section>
  );
}
