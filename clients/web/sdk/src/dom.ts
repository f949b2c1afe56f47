import { KEY_CLASSES, type KeyClass, type PointerAction } from "./contract.js";
import { classifyKey, maskPasswordClass } from "./key-class.js";
import type { PointerSample } from "./pointer-path.js";
import type { Press } from "./typing.js";

/** What the DOM says, without the DOM. */
export interface Observer {
  press(press: Press): void;
  release(id: string, at: number): void;
  /** Releases that are still missing will not come. */
  focusLost(): void;
  /** An input method composes text: its keys have no classes and their times are its own. */
  composing(): void;
  pointer(sample: PointerSample): void;
}

/** Elements under one with this attribute are never observed. */
const IGNORED = "[data-capture-ignore]";
/** Keys of an on-screen keypad name their class in this attribute; their touches are then keystrokes. */
const SCREEN_KEY = "[data-key-class]";

/** Listens on `target` (pointer) and `typingTarget` (keys) and tells `observer`; returns what ends it. */
export function bindDom(
  target: EventTarget,
  typingTarget: EventTarget,
  trustedOnly: boolean,
  observer: Observer,
): () => void {
  const ends = new AbortController();
  const observed = (event: Event): boolean =>
    (event.isTrusted || !trustedOnly) && !(event.target instanceof Element && event.target.closest(IGNORED));
  const on = <E extends Event>(where: EventTarget, type: string, handle: (event: E) => void): void => {
    const listener = (event: Event): void => {
      if (observed(event)) handle(event as E);
    };
    where.addEventListener(type, listener, { capture: true, passive: true, signal: ends.signal });
  };
  bindKeys(typingTarget, on, observer);
  bindPointer(target, on, observer);
  return () => ends.abort();
}

type On = <E extends Event>(where: EventTarget, type: string, handle: (event: E) => void) => void;

function bindKeys(target: EventTarget, on: On, observer: Observer): void {
  on<KeyboardEvent>(target, "keydown", (event) => {
    if (event.repeat) return;
    if (event.isComposing) return observer.composing();
    const keyClass = isPassword(event.target) ? maskPasswordClass(classifyKey(event)) : classifyKey(event);
    observer.press({ id: keyId(event), keyClass, at: event.timeStamp });
  });
  on<KeyboardEvent>(target, "keyup", (event) => {
    observer.release(keyId(event), event.timeStamp);
    // While Command is held, macOS reports no release of other keys.
    if (event.key === "Meta") observer.focusLost();
  });
  on<Event>(target, "compositionstart", () => observer.composing());
  on<FocusEvent>(target, "focusout", () => observer.focusLost());
  on<Event>(window, "blur", (event) => {
    // Listening while the event comes down, the window also hears of every element that loses the focus.
    if (!(event.target instanceof Element)) observer.focusLost();
  });
  on<Event>(document, "visibilitychange", () => observer.focusLost());
}

function bindPointer(target: EventTarget, on: On, observer: Observer): void {
  const sample = (event: MouseEvent, action: PointerAction): void =>
    observer.pointer({ at: event.timeStamp, x: event.clientX, y: event.clientY, action });
  // Fingers do not hover: their path is only drags, and a person's touch screen would blur what is known of their mouse.
  const onPointer = (type: string, handle: (event: PointerEvent) => void): void =>
    on<PointerEvent>(target, type, (event) => {
      if (event.pointerType !== "touch") handle(event);
    });
  onPointer("pointermove", (event) => sample(event, event.buttons === 0 ? "move" : "drag"));
  onPointer("pointerdown", (event) => sample(event, event.button === 0 ? "press" : "secondary_press"));
  onPointer("pointerup", (event) => sample(event, event.button === 0 ? "release" : "secondary_release"));
  on<WheelEvent>(target, "wheel", (event) => sample(event, "scroll"));
  bindScreenKeys(target, on, observer);
}

function bindScreenKeys(target: EventTarget, on: On, observer: Observer): void {
  const keyOf = (event: PointerEvent): HTMLElement | null =>
    event.pointerType === "touch" && event.target instanceof Element ? event.target.closest(SCREEN_KEY) : null;
  on<PointerEvent>(target, "pointerdown", (event) => {
    const keyClass = keyOf(event)?.dataset.keyClass;
    if (keyClass === undefined) return;
    // Contact size as a share of a fingertip of 40 CSS pixels, about a centimetre.
    const touch = { pressure: event.pressure, contactSize: Math.max(event.width, event.height) / 40 };
    observer.press({ id: `touch-${event.pointerId}`, keyClass: screenKeyClass(keyClass), at: event.timeStamp, touch });
  });
  for (const type of ["pointerup", "pointercancel"]) {
    on<PointerEvent>(target, type, (event) => {
      if (event.pointerType === "touch") observer.release(`touch-${event.pointerId}`, event.timeStamp);
    });
  }
}

function screenKeyClass(name: string): KeyClass {
  return KEY_CLASSES.find((keyClass) => keyClass === name) ?? "unspecified";
}

/** What tells a key from the others that are held; virtual keyboards give no code and hold one key at a time. */
function keyId(event: KeyboardEvent): string {
  return event.code === "" ? "virtual" : event.code;
}

function isPassword(target: EventTarget | null): boolean {
  return target instanceof HTMLInputElement && target.type === "password";
}
