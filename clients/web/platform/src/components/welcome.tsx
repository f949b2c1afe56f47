import { Capture } from "./privacy.js";
import { RhythmSample } from "./rhythm-sample.js";

const STEPS = [
  ["Teach", "Type a short phrase a few times. The page learns the rhythm, not the words."],
  ["Watch", "Every phrase gets a score within a moment, and the reasons in plain words."],
  ["Hand over", "Let somebody else type. The page notices, and shows what gave them away."],
] as const;

export function Welcome({ starting, onStart }: { starting: boolean; onStart: () => void }) {
  return (
    <>
      <section className="hero">
        <div>
          <h1>Your typing has a&nbsp;rhythm of its own.</h1>
          <p className="lead">
            BehaviorGuard learns how you press keys and move the pointer. If somebody else takes over your session, it
            notices within a moment, and says why. Try it on yourself.
          </p>
          <div className="hero-action">
            <button type="button" className="button" data-size="large" onClick={onStart} disabled={starting}>
              {starting ? "Preparing…" : "Start, no account needed"}
            </button>
            <p className="hint">About two minutes. What you type is never read.</p>
          </div>
        </div>
        <RhythmSample />
      </section>
      <ol className="steps-intro">
        {STEPS.map(([name, text], i) => (
          <li key={name} className="card">
            <span className="step-number" aria-hidden="true">
              {i + 1}
            </span>
            <h2>{name}</h2>
            <p>{text}</p>
          </li>
        ))}
      </ol>
      <section className="card" aria-labelledby="captured">
        <h2 id="captured">What this page observes</h2>
        <Capture />
      </section>
    </>
  );
}
