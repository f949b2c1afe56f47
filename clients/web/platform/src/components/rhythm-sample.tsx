/** Made-up timings of the same thirteen keys: press and hold, milliseconds. */
const YOU = [
  [0, 92],
  [118, 84],
  [224, 96],
  [366, 78],
  [455, 101],
  [610, 70],
  [742, 88],
  [836, 93],
  [958, 82],
  [1064, 97],
  [1166, 79],
  [1290, 90],
  [1376, 95],
] as const;
const OTHER = [
  [0, 61],
  [201, 58],
  [322, 72],
  [410, 55],
  [668, 66],
  [745, 49],
  [1004, 63],
  [1083, 60],
  [1305, 52],
  [1368, 70],
  [1590, 64],
  [1662, 57],
  [1841, 68],
] as const;

/** The same phrase typed by two people: what the system sees of it. */
export function RhythmSample() {
  return (
    <figure className="sample card">
      <Row name="You" taps={YOU} level="normal" />
      <Row name="Somebody else" taps={OTHER} level="critical" />
      <figcaption>
        The same phrase, as the system sees it: each bar is a key held down. No letters. (Illustration)
      </figcaption>
    </figure>
  );
}

function Row({ name, taps, level }: { name: string; taps: readonly (readonly [number, number])[]; level: string }) {
  return (
    <div className="sample-row" data-level={level}>
      <span>{name}</span>
      <svg viewBox="0 0 1920 120" preserveAspectRatio="none" aria-hidden="true">
        {taps.map(([press, hold]) => (
          <rect key={press} x={press} y="10" width={hold} height="100" rx="18" fill="currentColor" />
        ))}
      </svg>
    </div>
  );
}
