import type { AlertData, ThreatLevel } from "@behaviorguard/capture";
import uPlot from "uplot";
import { LEVEL_TEXT, THRESHOLDS } from "./levels.js";
import type { Observed } from "./state.js";

export type ScoredEvent = Observed & { readonly alert: AlertData };

/** Events in view, where there is room and where there is little. */
const WINDOW = 30;
const NARROW_WINDOW = 15;
const NARROW_PX = 480;
const SLIDE_MS = 280;
const BANDS: readonly { level: ThreatLevel; from: number; to: number }[] = [
  { level: "normal", from: 0, to: THRESHOLDS.suspicious },
  { level: "suspicious", from: THRESHOLDS.suspicious, to: THRESHOLDS.threat },
  { level: "threat", from: THRESHOLDS.threat, to: THRESHOLDS.critical },
  { level: "critical", from: THRESHOLDS.critical, to: 1 },
];

/** Columns for the chart: the event's number and its score. */
export function dataOf(events: readonly ScoredEvent[]): uPlot.AlignedData {
  return [events.map((_, i) => i + 1), events.map((event) => event.alert.threatScore ?? 0)];
}

/** Draws the events that `events` returns into `host`, in the theme's colours. */
export function createChart(host: HTMLElement, events: () => readonly ScoredEvent[]): uPlot {
  const colour = palette(host);
  const font = `12px ${getComputedStyle(host).fontFamily}`;
  const axis = { font, stroke: colour("--muted"), grid: { show: false }, ticks: { show: false } } as const;
  const options: uPlot.Options = {
    width: host.clientWidth,
    height: host.clientHeight,
    padding: [8, 12, 0, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: (_, min, max) => [min, max] }, y: { range: [0, 1] } },
    axes: [
      {
        ...axis,
        size: 28,
        gap: 6,
        space: 60,
        incrs: [1, 2, 5, 10, 20],
        values: (_, marks) => marks.map((n) => `#${n}`),
      },
      { ...axis, size: 44, gap: 6, splits: () => [0, 0.3, 0.7, 0.9], values: (_, marks) => marks.map(asPercent) },
    ],
    series: [{}, { stroke: colour("--text"), width: 1.75, points: { show: false } }],
    hooks: {
      drawClear: [(chart) => drawBands(chart, colour, font)],
      draw: [(chart) => drawPoints(chart, events(), colour)],
    },
  };
  const chart = new uPlot(options, dataOf(events()), host);
  const [from, to] = rangeOf(chart, events().length);
  chart.setScale("x", { min: from, max: to });
  return chart;
}

/** Shows `events`, moving the view along; at once for people who asked for less motion. */
export function slideTo(chart: uPlot, events: readonly ScoredEvent[]): void {
  const [from, to] = rangeOf(chart, events.length);
  const before = chart.scales.x?.min ?? from;
  const width = to - from;
  chart.setData(dataOf(events), false);
  const still = before === from || matchMedia("(prefers-reduced-motion: reduce)").matches;
  const started = performance.now();
  const step = (now: number): void => {
    const share = still ? 1 : Math.min(1, Math.max(0, now - started) / SLIDE_MS);
    const min = before + (from - before) * (1 - (1 - share) ** 3);
    chart.setScale("x", { min, max: min + width });
    if (share < 1 && chart.root.isConnected) requestAnimationFrame(step);
  };
  step(started);
}

function rangeOf(chart: uPlot, count: number): [from: number, to: number] {
  const shown = chart.width < NARROW_PX ? NARROW_WINDOW : WINDOW;
  const last = Math.max(count, shown);
  return [last - shown + 0.5, last + 0.5];
}

type Palette = (variable: string) => string;

/** Resolves the theme's variables, which a canvas cannot read itself. */
function palette(host: HTMLElement): Palette {
  const probe = host.appendChild(document.createElement("span"));
  const resolved = new Map<string, string>();
  const resolve = (variable: string): string => {
    probe.style.color = `var(${variable})`;
    return getComputedStyle(probe).color;
  };
  const variables = ["--text", "--muted", "--surface", "--learning", ...BANDS.map(({ level }) => `--${level}`)];
  for (const variable of variables) resolved.set(variable, resolve(variable));
  probe.remove();
  return (variable) => resolved.get(variable) ?? "gray";
}

function asPercent(score: number): string {
  return `${Math.round(score * 100)} %`;
}

function drawBands(chart: uPlot, colour: Palette, font: string): void {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.font = font.replace("12px", `${11 * devicePixelRatio}px`);
  ctx.textAlign = "right";
  for (const { level, from, to } of BANDS) {
    const top = chart.valToPos(to, "y", true);
    const bottom = chart.valToPos(from, "y", true);
    ctx.fillStyle = colour(`--${level}`);
    ctx.globalAlpha = 0.09;
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    ctx.globalAlpha = 0.9;
    ctx.textBaseline = "middle";
    ctx.fillText(LEVEL_TEXT[level].name, bbox.left + bbox.width - 8 * devicePixelRatio, (top + bottom) / 2);
  }
  ctx.restore();
}

function drawPoints(chart: uPlot, events: readonly ScoredEvent[], colour: Palette): void {
  const { ctx, bbox } = chart;
  const radius = 4.5 * devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top - radius * 2, bbox.width, bbox.height + radius * 4);
  ctx.clip();
  ctx.lineWidth = 2 * devicePixelRatio;
  for (const [i, { alert, learning }] of events.entries()) {
    const x = chart.valToPos(i + 1, "x", true);
    if (x < bbox.left - radius) continue;
    const y = chart.valToPos(alert.threatScore ?? 0, "y", true);
    ctx.strokeStyle = colour("--surface");
    ctx.fillStyle = colour(learning ? "--learning" : `--${alert.threatLevel}`);
    const shape = new Path2D();
    outline(shape, learning ? "normal" : alert.threatLevel, x, y, radius);
    ctx.stroke(shape);
    ctx.fill(shape);
  }
  ctx.restore();
}

/** The level’s own shape: circle, diamond, triangle, octagon, as in its icon. */
function outline(path: Path2D, level: ThreatLevel, x: number, y: number, radius: number): void {
  const corners = { normal: 0, suspicious: 4, threat: 3, critical: 8 }[level];
  if (corners === 0) {
    path.arc(x, y, radius, 0, 2 * Math.PI);
    return;
  }
  const turn = corners === 8 ? Math.PI / 8 : -Math.PI / 2;
  const reach = radius * 1.35;
  for (let i = 0; i < corners; i++) {
    const angle = turn + (i * 2 * Math.PI) / corners;
    path.lineTo(x + reach * Math.cos(angle), y + reach * Math.sin(angle));
  }
  path.closePath();
}
