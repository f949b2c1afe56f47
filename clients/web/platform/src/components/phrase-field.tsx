import { type KeyboardEvent, useEffect, useRef, useState } from "react";
import { type Guard, PROMPT } from "../guard.js";

interface Props {
  guard: Guard;
  locked: boolean;
  onField: (field: HTMLInputElement | null) => void;
}

const SLIP = "A slip: press Enter or Backspace and type it again. Only clean phrases count.";

/** The phrase to type, and the field. A phrase with a slip is dropped: its rhythm says little. */
export function PhraseField({ guard, locked, onField }: Props) {
  const field = useRef<HTMLInputElement>(null);
  const [typed, setTyped] = useState("");
  const [dropped, setDropped] = useState(false);
  const slipped = !PROMPT.text.startsWith(typed);

  useEffect(() => {
    const input = field.current;
    if (input === null) return;
    onField(input);
    guard.accept = () => guard.madeUp || input.value.trim() === PROMPT.text;
    input.focus({ preventScroll: true });
    return guard.observeTyping(input);
  }, [guard, onField]);

  useEffect(() => {
    if (locked) setTyped("");
    else field.current?.focus({ preventScroll: true });
  }, [locked]);

  const clear = (): void => {
    setTyped("");
    setDropped(true);
    guard.discardPhrase();
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (guard.madeUp) return;
    if (event.key === "Enter") {
      event.preventDefault();
      setDropped(typed.trim() !== PROMPT.text);
      setTyped("");
    } else if (event.key === "Backspace" || event.key === "Delete") {
      event.preventDefault();
      if (typed !== "") clear();
    }
  };

  return (
    <div className="phrase">
      <p className="phrase-text" aria-hidden="true">
        {[...PROMPT.text].map((letter, i) => (
          <span
            // biome-ignore lint/suspicious/noArrayIndexKey: the phrase never changes, its positions are its identity
            key={i}
            data-state={i >= typed.length ? "ahead" : PROMPT.text.startsWith(typed.slice(0, i + 1)) ? "done" : "wrong"}
          >
            {letter === " " ? "\u00a0" : letter}
          </span>
        ))}
      </p>
      <label className="visually-hidden" htmlFor="phrase">
        Type “{PROMPT.text}” and press Enter
      </label>
      <input
        ref={field}
        id="phrase"
        className="phrase-input"
        value={typed}
        onChange={(event) => setTyped(event.target.value)}
        onKeyDown={onKeyDown}
        onPaste={(event) => event.preventDefault()}
        onDrop={(event) => event.preventDefault()}
        disabled={locked}
        placeholder={locked ? "Locked" : "Type here, then Enter"}
        aria-describedby="phrase-help"
        aria-invalid={slipped}
        maxLength={40}
        autoComplete="off"
        autoCorrect="off"
        autoCapitalize="none"
        spellCheck={false}
        enterKeyHint="done"
      />
      <p id="phrase-help" className="phrase-help" data-slip={slipped} aria-live="polite">
        {slipped ? SLIP : dropped && typed === "" ? "Not counted. Type the whole phrase once more." : "\u00a0"}
      </p>
    </div>
  );
}
