"""A program that trains nothing and saves badly, to see that the bars find it out.

`careless.py RUN overwrite|unsynced|careful`

It counts to 12, and saves every third number: straight over the last file; or by a rename of a file that was never
synced; or as it should be.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

STEPS, EVERY = 12, 3


def main(run: Path, manner: str) -> None:
    path = run / "state.json"
    try:
        run.mkdir(parents=True, exist_ok=True)
        state = json.loads(path.read_text()) if path.exists() else {"step": 0, "sum": ""}
        while state["step"] < STEPS:
            step = state["step"] + 1
            state = {"step": step, "sum": hashlib.sha256(f"{state['sum']} {step}".encode()).hexdigest()}
            if step % EVERY == 0:
                save(path, json.dumps(state), manner)
    except OSError as error:
        sys.exit(f"{error.filename or path}: {error.strerror}")


def save(path: Path, content: str, manner: str) -> None:
    if manner == "overwrite":
        path.write_text(content)
        return
    draft = path.with_suffix(".tmp")
    try:
        with draft.open("w") as file:
            file.write(content)
            file.flush()
            if manner == "careful":
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if manner == "careful":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
