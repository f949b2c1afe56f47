import type { State } from "../state.js";

const NAMES = ["Teach it your rhythm", "See yourself recognised", "Hand over the keyboard"] as const;

/** Where the visitor is on the way. */
export function Steps({ state, handedOver }: { state: State; handedOver: boolean }) {
  const recognised = state.events.filter((event) => event.alert !== undefined && event.learning === false).length;
  const current = state.phase === "learning" ? 0 : recognised < 3 && !handedOver ? 1 : 2;
  return (
    <ol className="steps" aria-label="Steps">
      {NAMES.map((name, i) => (
        <li
          key={name}
          data-state={i < current ? "done" : i === current ? "current" : "ahead"}
          aria-current={i === current ? "step" : undefined}
        >
          <span className="step-number" aria-hidden="true">
            {i < current ? "✓" : i + 1}
          </span>
          {name}
          {i < current && <span className="visually-hidden"> (done)</span>}
        </li>
      ))}
    </ol>
  );
}
