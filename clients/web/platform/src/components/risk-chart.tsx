import { useEffect, useRef } from "react";
import type uPlot from "uplot";
import { createChart, type ScoredEvent, slideTo } from "../chart.js";
import { onThemeChange } from "../theme.js";

/** Score of each event, newest at the right. The same figures stand in the table of recent events. */
export function RiskChart({ events }: { events: readonly ScoredEvent[] }) {
  const host = useRef<HTMLDivElement>(null);
  const latest = useRef(events);
  const redraw = useRef<(() => void) | undefined>(undefined);

  useEffect(() => {
    const element = host.current;
    if (element === null) return;
    let chart: uPlot | undefined;
    const make = (): void => {
      chart?.destroy();
      chart = createChart(element, () => latest.current);
    };
    make();
    redraw.current = () => {
      if (chart !== undefined) slideTo(chart, latest.current);
    };
    const resized = new ResizeObserver(() =>
      chart?.setSize({ width: element.clientWidth, height: element.clientHeight }),
    );
    resized.observe(element);
    const forget = onThemeChange(make);
    return () => {
      forget();
      resized.disconnect();
      chart?.destroy();
    };
  }, []);

  useEffect(() => {
    latest.current = events;
    redraw.current?.();
  }, [events]);

  const last = events.at(-1);
  const label =
    last === undefined
      ? "Risk per event: nothing scored yet"
      : `Risk per event, ${events.length} events, the last ${Math.round((last.alert.threatScore ?? 0) * 100)} percent`;
  return (
    <figure className="chart">
      <figcaption>Risk of each event, newest at the right</figcaption>
      <div className="chart-canvas" ref={host} role="img" aria-label={label} />
      {last === undefined && <p className="chart-empty">The first phrase puts the first point here.</p>}
    </figure>
  );
}
