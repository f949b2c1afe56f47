import type { ThreatLevel } from "@behaviorguard/capture";
import type { ReactNode } from "react";

function Icon({ children, className = "icon" }: { children: ReactNode; className?: string }) {
  return (
    <svg className={className} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      {children}
    </svg>
  );
}

export const SunIcon = () => (
  <Icon>
    <circle cx="12" cy="12" r="4.2" fill="none" stroke="currentColor" strokeWidth="1.8" />
    <path
      d="M12 2.5v3M12 18.5v3M2.5 12h3M18.5 12h3M5.3 5.3l2.1 2.1M16.6 16.6l2.1 2.1M5.3 18.7l2.1-2.1M16.6 7.4l2.1-2.1"
      stroke="currentColor"
      strokeWidth="1.8"
      strokeLinecap="round"
    />
  </Icon>
);

export const MoonIcon = () => (
  <Icon>
    <path
      d="M20 14.5A8.3 8.3 0 0 1 9.5 4a8.3 8.3 0 1 0 10.5 10.5Z"
      fill="none"
      stroke="currentColor"
      strokeWidth="1.8"
      strokeLinejoin="round"
    />
  </Icon>
);

/** A shape for each level, so that colour is never the only sign. */
const SHAPES: Record<ThreatLevel | "learning", ReactNode> = {
  normal: (
    <>
      <circle cx="12" cy="12" r="10" fill="currentColor" />
      <path d="m7.5 12.3 3 3 6-6.4" className="icon-cut" />
    </>
  ),
  suspicious: (
    <>
      <rect x="4.2" y="4.2" width="15.6" height="15.6" rx="2.5" transform="rotate(45 12 12)" fill="currentColor" />
      <path d="M7.8 12h8.4" className="icon-cut" />
    </>
  ),
  threat: (
    <>
      <path
        d="M10.2 3.2 1.8 18a2.1 2.1 0 0 0 1.8 3.2h16.8a2.1 2.1 0 0 0 1.8-3.2L13.8 3.2a2.1 2.1 0 0 0-3.6 0Z"
        fill="currentColor"
      />
      <path d="M12 8.8v5.2M12 17.4v.2" className="icon-cut" />
    </>
  ),
  critical: (
    <>
      <path d="M8 2h8l6 6v8l-6 6H8l-6-6V8z" fill="currentColor" />
      <path d="m8.3 8.3 7.4 7.4M15.7 8.3l-7.4 7.4" className="icon-cut" />
    </>
  ),
  learning: (
    <circle cx="12" cy="12" r="9" fill="none" stroke="currentColor" strokeWidth="2.4" strokeDasharray="4.2 3.5" />
  ),
};

export function LevelIcon({ level, className }: { level: ThreatLevel | "learning"; className?: string }) {
  return <Icon {...(className === undefined ? {} : { className })}>{SHAPES[level]}</Icon>;
}
