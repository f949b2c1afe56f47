import type { KeyClass } from "./contract.js";

/** The parts of a KeyboardEvent that tell its class. The character is looked at here and goes no further. */
export interface KeyIdentity {
  readonly key: string;
  readonly code: string;
}

const LEFT_HAND = new Set([..."QWERTASDFGZXCVB"].map((letter) => `Key${letter}`));
for (const code of ["Digit1", "Digit2", "Digit3", "Digit4", "Digit5", "Backquote", "IntlBackslash"])
  LEFT_HAND.add(code);

const MODIFIERS = new Set(
  "Shift Control Alt AltGraph Meta OS CapsLock NumLock ScrollLock Fn FnLock Hyper Super Symbol SymbolLock ModeChange".split(
    " ",
  ),
);
const NAVIGATION = /^(Arrow(Up|Down|Left|Right)|Home|End|PageUp|PageDown|Tab|Escape|Insert|ContextMenu|F\d{1,2})$/;
const SINGLE_CHARACTER = /^.$/u;
const LETTER = /^\p{L}$/u;
const DIGIT = /^\p{Nd}$/u;

/** Classifies a key by what it types and, for letters, by where it lies. */
export function classifyKey({ key, code }: KeyIdentity): KeyClass {
  if (key === " " || code === "Space") return "space";
  if (key === "Enter") return "enter";
  if (key === "Backspace" || key === "Delete") return "correction";
  if (MODIFIERS.has(key)) return "modifier";
  if (NAVIGATION.test(key)) return "navigation";
  if (key === "Dead") return "punctuation";
  if (!SINGLE_CHARACTER.test(key)) return "unspecified"; // composing, virtual keyboards, media keys
  if (DIGIT.test(key)) return "digit";
  if (!LETTER.test(key)) return "punctuation";
  // Virtual keyboards give no position: then the letter stands for its place on a standard layout.
  const position = code === "" ? `Key${key.toUpperCase()}` : code;
  return LEFT_HAND.has(position) ? "letter_left" : "letter_right";
}

/** In a password field the sequence of classes would narrow down the password: only what types nothing is told apart. */
export function maskPasswordClass(keyClass: KeyClass): KeyClass {
  const typesNothing =
    keyClass === "enter" || keyClass === "modifier" || keyClass === "navigation" || keyClass === "correction";
  return typesNothing ? keyClass : "unspecified";
}
