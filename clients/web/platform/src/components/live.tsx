import type { Guard } from "../guard.js";
import type { State } from "../state.js";
import { scored } from "../state.js";
import { EventList } from "./event-list.js";
import { Models } from "./models.js";
import { Now } from "./now.js";
import { Privacy } from "./privacy.js";
import { Reasons } from "./reasons.js";
import { RiskChart } from "./risk-chart.js";
import { Steps } from "./steps.js";
import { Typing } from "./typing.js";
import { Verdict } from "./verdict.js";

export function Live({ guard, state }: { guard: Guard; state: State }) {
  const events = scored(state);
  const latest = events.at(-1);
  return (
    <>
      <h1 className="visually-hidden">Live page: is it still you?</h1>
      <Steps
        state={state}
        handedOver={events.some((event) => !event.learning && event.alert.threatLevel !== "normal")}
      />
      <Now guard={guard} state={state} />
      <div className="live">
        <Typing guard={guard} state={state} />
        <section className="card risk" aria-labelledby="risk-title">
          <Verdict latest={latest} learning={state.phase === "learning"} />
          <RiskChart events={events} />
        </section>
        <Models latest={latest} />
        <Reasons latest={latest} />
      </div>
      <EventList events={state.events} />
      {state.trial !== undefined && <Privacy trial={state.trial} onErase={() => void guard.erase()} />}
    </>
  );
}
