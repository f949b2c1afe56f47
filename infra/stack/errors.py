"""What the stack says when it cannot go on."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot go on. The text says what is wrong; `action` says what the person can do about it."""

    def __init__(self, problem: str, action: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.action = action

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.action}"
