/** Made-up timings of the same thirteen keys: press and hold, milliseconds. */
type Taps = readonly (readonly [press: number, hold: number])[];

const YOU: Taps = [
  [0, 74],
  [136, 66],
  [250, 78],
  [410, 60],
  [511, 83],
  [690, 52],
  [842, 70],
  [944, 75],
  [1086, 64],
  [1204, 79],
  [1316, 61],
  [1452, 72],
  [1548, 77],
];
const OTHER: Taps = [
  [0, 41],
  [221, 38],
  [352, 52],
  [440, 35],
  [718, 46],
  [805, 29],
  [1084, 43],
  [1163, 40],
  [1405, 32],
  [1468, 50],
  [1690, 44],
  [1762, 37],
  [1941, 48],
];
/** How the same person's repeats differ: factors that stretch a phrase as a whole. */
const REPEATS = [1, 0.975, 1.02];
const SPAN = 2_000;

/** The same phrase typed by two people: what the system sees of it. */
export function RhythmSample() {
  return (
    <figure className="sample card">
      <Person name="You, three times" rows={REPEATS.map((factor) => stretch(YOU, factor))} level="normal" />
      <Person name="Somebody else" rows={[OTHER]} level="critical" />
      <figcaption>
        One phrase as the system sees it: a bar is a key held down. No letters, only time. (Drawn for illustration.)
      </figcaption>
    </figure>
  );
}

function stretch(taps: Taps, factor: number): Taps {
  return taps.map(([press, hold], i) => [press * factor + ((i * 7) % 5) * (1 - factor) * 120, hold * (2 - factor)]);
}

function Person({ name, rows, level }: { name: string; rows: readonly Taps[]; level: string }) {
  return (
    <div className="sample-person" data-level={level}>
      <span>{name}</span>
      {rows.map((taps, i) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: the rows never change
        <svg key={i} viewBox={`0 0 ${SPAN} 24`} preserveAspectRatio="none" aria-hidden="true">
          {taps.map(([press, hold]) => (
            <rect key={press} x={press} y="0" width={hold} height="24" rx="16" ry="4" fill="currentColor" />
          ))}
        </svg>
      ))}
    </div>
  );
}
