import { LEVEL_TEXT } from "../levels.js";
import type { Observed } from "../state.js";
import { LevelIcon } from "./icons.js";

const SHOWN = 8;

/** The latest events, newest first, with what became of each. */
export function EventList({ events }: { events: readonly Observed[] }) {
  const shown = events.slice(-SHOWN).reverse();
  return (
    <section className="card events" aria-labelledby="events-title">
      <h2 id="events-title">Recent events</h2>
      {shown.length === 0 ? (
        <p className="empty">No events yet. Type the phrase above, or move the pointer for four seconds.</p>
      ) : (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
        <section className="table-scroll" tabIndex={0} aria-label="Table of recent events">
          <table>
            <thead>
              <tr>
                <th scope="col">Time</th>
                <th scope="col" className="detail">
                  Observed
                </th>
                <th scope="col">Level</th>
                <th scope="col" className="number">
                  Risk
                </th>
                <th scope="col" className="number detail">
                  First guess
                </th>
                <th scope="col" className="number detail">
                  Scored in
                </th>
                <th scope="col" className="number">
                  Answer in
                </th>
              </tr>
            </thead>
            <tbody>
              {shown.map((event) => (
                <Row key={event.eventId} event={event} />
              ))}
            </tbody>
          </table>
        </section>
      )}
      <p className="hint">
        “First guess” is the server’s instant estimate before the models. “Scored in” is the system’s own time, “Answer
        in” is measured here, network included.
      </p>
    </section>
  );
}

function Row({ event }: { event: Observed }) {
  const { alert } = event;
  const what = event.kind === "typing" ? `${event.size} keys` : `${event.size} pointer positions`;
  return (
    <tr>
      <td>{event.at.toLocaleTimeString()}</td>
      <td className="detail">
        {what}
        {event.madeUp && <span className="tag">made-up typist</span>}
      </td>
      <td>
        <Level event={event} />
      </td>
      <td className="number">{alert === undefined ? "–" : `${Math.round((alert.threatScore ?? 0) * 100)} %`}</td>
      <td className="number detail">
        {event.preliminaryRisk === undefined ? "–" : `${Math.round(event.preliminaryRisk * 100)} %`}
      </td>
      <td className="number detail">{alert === undefined ? "–" : `${alert.processingTimeMs ?? 0} ms`}</td>
      <td className="number">{event.latencyMs === undefined ? "–" : `${Math.round(event.latencyMs)} ms`}</td>
    </tr>
  );
}

function Level({ event: { alert, failure, learning } }: { event: Observed }) {
  if (failure !== undefined) return <span className="level">Not sent: {failure}</span>;
  if (alert === undefined) return <span className="level">Waiting…</span>;
  const level = learning ? "learning" : alert.threatLevel;
  return (
    <span className="level" data-level={level}>
      <LevelIcon level={level} />
      {level === "learning" ? "Learning" : LEVEL_TEXT[level].name}
    </span>
  );
}
