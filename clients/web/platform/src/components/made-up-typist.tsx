import { useState } from "react";
import type { Guard } from "../guard.js";
import { typePhrase } from "../typist.js";

interface Props {
  guard: Guard;
  field: HTMLElement | null;
  disabled: boolean;
}

/** For visitors who are alone: a typist that this page makes up, marked as such in the list of events. */
export function MadeUpTypist({ guard, field, disabled }: Props) {
  const [busy, setBusy] = useState(false);
  const type = async (): Promise<void> => {
    if (field === null) return;
    setBusy(true);
    guard.madeUp = true;
    guard.discardPhrase();
    await typePhrase(field);
    guard.madeUp = false;
    setBusy(false);
    field.focus({ preventScroll: true });
  };
  return (
    <div className="alone">
      <p>
        <strong>Nobody around?</strong> Type with one hand, or let a made-up typist press the keys.
      </p>
      <button
        type="button"
        className="button"
        data-kind="quiet"
        onClick={() => void type()}
        disabled={busy || disabled}
      >
        {busy ? "Typing…" : "Made-up typist"}
      </button>
    </div>
  );
}
