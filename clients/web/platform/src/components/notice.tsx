interface Props {
  problem: { readonly message: string; readonly next: string } | undefined;
  notice: string | undefined;
}

/** What went wrong and what to do next, or what was just done. */
export function Notice({ problem, notice }: Props) {
  if (problem !== undefined) {
    return (
      <div className="notice" data-kind="problem" role="alert">
        <strong>{problem.message}</strong> {problem.next}
      </div>
    );
  }
  return notice === undefined ? null : (
    <div className="notice" data-kind="done" role="status">
      {notice}
    </div>
  );
}
