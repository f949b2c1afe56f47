import { useEffect, useRef } from "react";
import type { Guard } from "../guard.js";
import type { State } from "../state.js";
import { scored } from "../state.js";
import { Takeover } from "./takeover.js";

/** What to do now, or what just happened. One place, always filled, so that nothing moves when an alert arrives. */
export function Now({ guard, state }: { guard: Guard; state: State }) {
  const { takeover } = state;
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (takeover !== undefined) place.current?.scrollIntoView({ block: "nearest" });
  }, [takeover]);
  return (
    <div className="now" ref={place}>
      <div role="alert">
        {takeover !== undefined && (
          <Takeover
            alert={takeover}
            locked={state.phase === "locked"}
            onDismiss={() => guard.dismiss()}
            onErase={() => void guard.erase()}
          />
        )}
      </div>
      {takeover === undefined && <Guide state={state} />}
    </div>
  );
}

function Guide({ state }: { state: State }) {
  const { title, text } = guidance(state);
  return (
    <div className="guide">
      <h2>{title}</h2>
      <p>{text}</p>
    </div>
  );
}

function guidance(state: State): { title: string; text: string } {
  if (state.phase === "learning") {
    return {
      title: "Teach it your rhythm",
      text: "Type the phrase and press Enter, the way you always type. Again and again, until the bar is full.",
    };
  }
  const judged = scored(state).filter((event) => event.learning === false);
  if (judged.at(-1)?.alert.threatLevel === "suspicious") {
    return {
      title: "Something has changed",
      text: "This is not quite your rhythm. Another phrase makes it surer, one way or the other.",
    };
  }
  const own = judged.length;
  return own < 3
    ? {
        title: "Now it knows you",
        text: "Type the phrase a few more times: each is judged within a moment, and the line stays low.",
      }
    : {
        title: "Hand the keyboard to somebody else",
        text: "Let them type the same phrase and press Enter. One phrase may be enough; each further one makes it surer.",
      };
}
