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
  const learning = state.phase === "learning";
  return (
    <section className="card typing" aria-labelledby="typing-title">
      <h2 id="typing-title">{learning ? "Teach it your rhythm" : "Now let somebody else type"}</h2>
      <p>
        {learning
          ? "Type the phrase and press Enter, the way you always type. Again, until the bar is full."
          : "A few more phrases of your own stay low. Then hand over the keyboard and watch the line."}
      </p>
      <PhraseField guard={guard} locked={state.phase === "locked"} onField={setField} />
      {learning ? (
        <Progress baseline={state.baseline} points={state.points} />
      ) : (
        <MadeUpTypist guard={guard} field={field} disabled={state.phase === "locked"} />
      )}
      <Rhythm events={state.events} />
    </section>
  );
}
