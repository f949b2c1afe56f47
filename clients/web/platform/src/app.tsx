import { useSyncExternalStore } from "react";
import { Header } from "./components/header.js";
import { Live } from "./components/live.js";
import { Notice } from "./components/notice.js";
import { Welcome } from "./components/welcome.js";
import type { Guard } from "./guard.js";

export function App({ guard }: { guard: Guard }) {
  const state = useSyncExternalStore(guard.subscribe, guard.snapshot);
  const welcoming = state.phase === "welcome" || state.phase === "starting";
  return (
    <>
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <Header state={state} />
      <main id="main" tabIndex={-1}>
        <Notice problem={state.problem} notice={state.notice} />
        {welcoming ? (
          <Welcome starting={state.phase === "starting"} onStart={() => void guard.start()} />
        ) : (
          <Live guard={guard} state={state} />
        )}
      </main>
      <footer className="footer">
        <p>
          BehaviorGuard compares how you work with how you usually work. A score is evidence, never proof: people vary,
          and so do keyboards.
        </p>
      </footer>
    </>
  );
}
