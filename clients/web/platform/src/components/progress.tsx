import type { Baseline } from "../api.js";

/** How far the person is learnt. */
export function Progress({ baseline, points }: { baseline: Baseline; points: number }) {
  const { typingSamples, mouseSamples, samplesNeeded } = baseline;
  return (
    <div className="progress">
      <Bar name="Typing" done={typingSamples} needed={samplesNeeded} unit="phrases" />
      <Bar name="Pointer" done={mouseSamples} needed={samplesNeeded} unit="stretches" partial={points / 40} />
      <p className="hint">
        Counted in phrases, and in stretches of four seconds of pointer movement: it is learnt on the side.
      </p>
    </div>
  );
}

interface BarProps {
  name: string;
  done: number;
  needed: number;
  unit: string;
  partial?: number;
}

function Bar({ name, done, needed, unit, partial = 0 }: BarProps) {
  const shown = Math.min(done, needed);
  const count = needed === 0 ? "…" : `${shown} of ${needed}`;
  return (
    <div className="bar">
      <span className="bar-name" id={`bar-${name}`}>
        {name}
      </span>
      <progress
        aria-labelledby={`bar-${name}`}
        aria-valuetext={`${count} ${unit}`}
        max={Math.max(1, needed)}
        value={Math.min(needed, shown + Math.min(1, partial))}
      />
      <span className="bar-value">{count}</span>
    </div>
  );
}
