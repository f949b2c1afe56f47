import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/parts.css";
import "uplot/dist/uPlot.min.css";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app.js";
import { Guard } from "./guard.js";
import { applyStoredTheme } from "./theme.js";

/** Text that changes its font while one reads it jumps: the page waits this long for its font, milliseconds. */
const FONT_DEADLINE_MS = 400;

async function main(): Promise<void> {
  applyStoredTheme();
  const guard = new Guard();
  void guard.resume();
  const font = document.fonts.load('1rem "Inter Variable"').catch(() => undefined);
  await Promise.race([font, new Promise((resolve) => setTimeout(resolve, FONT_DEADLINE_MS))]);
  const root = document.getElementById("root");
  if (root === null) throw new Error("index.html has no element with the id root");
  createRoot(root).render(
    <StrictMode>
      <App guard={guard} />
    </StrictMode>,
  );
}

void main();
