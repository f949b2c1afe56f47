/** What a capture observes and what it never does, in words to show to the person who is observed. */
export const PRIVACY_NOTICE = {
  captured: [
    "When each key goes down and comes up again",
    "The kind of key: left-hand letter, right-hand letter, digit, space, Shift, Enter …",
    "How the pointer travels, ten times a second, relative to where it started; clicks and scrolling",
    "How long this session has lasted, which views were open, and the browser’s name",
  ],
  never: [
    "Which letter or digit it was, or anything you wrote",
    "Passwords: in a password field not even the kind of key",
    "Where on the screen or page you pointed, or what you pointed at",
    "Anything in another tab, window or program",
  ],
} as const;
