import type { ConnectionState } from "@behaviorguard/capture";

const TEXT: Record<"open" | "connecting" | "retrying", string> = {
  open: "Connected",
  connecting: "Connecting…",
  retrying: "Reconnecting…",
};

/** Both directions in one word: events out and alerts in. */
export function Connection({ stream, alerts }: { stream: ConnectionState; alerts: ConnectionState }) {
  const both = [stream, alerts];
  const state = both.every((one) => one === "open") ? "open" : both.includes("retrying") ? "retrying" : "connecting";
  return (
    <p className="connection" data-state={state} role="status">
      <span className="connection-mark" aria-hidden="true" />
      {TEXT[state]}
      {state === "retrying" && <span className="connection-hint"> Your events are kept and sent later.</span>}
    </p>
  );
}
