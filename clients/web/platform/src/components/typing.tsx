import { useState } from "react";
import type { Guard } from "../guard.js";
import type { State } from "../state.js";
import { MadeUpTypist } from "./made-up-typist.js";
import { PhraseField } from "./phrase-field.js";
import { Progress } from "./progress.js";
import { Rhythm } from "./rhythm.js";

/** The card on which the visitor types. */
export function Typing({ guard, state }: { guard: Guard; state: State }) {
  const [field, setField] = useState<HTMLInputElement | null>(null);
  const locked = state.phase === "locked";
  return (
    <section className="card typing" aria-labelledby="typing-title">
      <h2 id="typing-title">Type this, then press Enter</h2>
      <PhraseField guard={guard} locked={locked} onField={setField} />
      <div className="typing-aside">
        {state.phase === "learning" ? (
          <Progress baseline={state.baseline} points={state.points} />
        ) : (
          <MadeUpTypist guard={guard} field={field} disabled={locked} />
        )}
      </div>
      <Rhythm events={state.events} />
    </section>
  );
}
