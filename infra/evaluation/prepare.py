"""`python -m infra.evaluation.prepare`: recordings to the arrays that `python -m pipeline.training` reads."""

from __future__ import annotations

from pathlib import Path

import click

from infra.evaluation.dataset import recordings_of
from infra.evaluation.recordings import RecordingError, read_keystrokes, read_mouse


@click.command()
@click.option("--keystrokes", required=True, type=click.Path(path_type=Path), help="CSV as in MEU-Mobile KSD.")
@click.option("--mouse", required=True, type=click.Path(path_type=Path), help="Folder as in the Balabit challenge.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="npz file to write.")
def main(keystrokes: Path, mouse: Path, output: Path) -> None:
    """Write samples and baselines of all people. The file holds personal behaviour: keep it out of the repository."""
    try:
        recordings = recordings_of(read_keystrokes(keystrokes), read_mouse(mouse))
    except RecordingError as error:
        raise click.ClickException(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    recordings.save(output)
    click.echo(f"{len(recordings.typists.sample)} typists and {len(recordings.mouse.sample)} mouse users in {output}")


if __name__ == "__main__":
    main()
