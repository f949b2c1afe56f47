import { useSyncExternalStore } from "react";
import type { State } from "../state.js";
import { currentTheme, onThemeChange, setTheme } from "../theme.js";
import { Connection } from "./connection.js";
import { MoonIcon, SunIcon } from "./icons.js";

export function Header({ state }: { state: State }) {
  return (
    <header className="header">
      <a className="brand" href="/">
        <img src="/favicon.svg" width="28" height="28" alt="" />
        BehaviorGuard
      </a>
      {state.trial !== undefined && <Connection stream={state.stream} alerts={state.alerts} />}
      <ThemeToggle />
    </header>
  );
}

function ThemeToggle() {
  const theme = useSyncExternalStore(onThemeChange, currentTheme);
  const other = theme === "dark" ? "light" : "dark";
  return (
    <button type="button" className="icon-button" aria-label={`Use the ${other} theme`} onClick={() => setTheme(other)}>
      {theme === "dark" ? <SunIcon /> : <MoonIcon />}
    </button>
  );
}
