import { describe, expect, it } from "vitest";
import { classifyKey, maskPasswordClass } from "../src/key-class.js";

describe("classifyKey", () => {
  it.each([
    ["q", "KeyQ", "letter_left"],
    ["P", "KeyP", "letter_right"],
    ["a", "KeyQ", "letter_left"], // AZERTY: the place counts, not the letter
    ["ö", "Semicolon", "letter_right"],
    ["é", "Digit2", "letter_left"],
    ["t", "", "letter_left"], // virtual keyboards give no place
    ["n", "", "letter_right"],
    ["5", "Digit5", "digit"],
    ["7", "Numpad7", "digit"],
    ["&", "Digit1", "punctuation"],
    ["Dead", "BracketLeft", "punctuation"],
    ["😀", "", "punctuation"],
    [" ", "Space", "space"],
    ["Enter", "NumpadEnter", "enter"],
    ["Shift", "ShiftRight", "modifier"],
    ["AltGraph", "AltRight", "modifier"],
    ["Backspace", "Backspace", "correction"],
    ["Delete", "Delete", "correction"],
    ["Tab", "Tab", "navigation"],
    ["ArrowLeft", "ArrowLeft", "navigation"],
    ["F12", "F12", "navigation"],
    ["Unidentified", "", "unspecified"],
    ["Process", "KeyA", "unspecified"],
    ["AudioVolumeUp", "AudioVolumeUp", "unspecified"],
  ] as const)("%s at %s is %s", (key, code, expected) => {
    expect(classifyKey({ key, code })).toBe(expected);
  });

  it("tells nothing that narrows a password down", () => {
    for (const keyClass of ["letter_left", "letter_right", "digit", "punctuation", "space"] as const) {
      expect(maskPasswordClass(keyClass)).toBe("unspecified");
    }
    expect(maskPasswordClass("enter")).toBe("enter");
  });
});
