"""The recipes' scores: train as `swindow train DATA` would, several seeds, one dated JSON file.

python benchmarks/accuracy.py digits --seeds 5
python benchmarks/accuracy.py path/to/fashion-mnist
python benchmarks/accuracy.py path/to/grocery-photos
python benchmarks/accuracy.py path/to/sunnybrook-cardiac --case '^SC-[A-Z-]+-\\d+'
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from record import write_record

import swindow
from swindow.training import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--case", default="", help="what files of one case have in common (masks.case)")
    parser.add_argument("--out", type=Path, help="keep the run folders here; a temporary folder otherwise")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        runs = [one(asked.data, asked.case, seed, folder / f"seed-{seed}") for seed in range(asked.seeds)]
    scores = [run["score"] for run in runs]
    summary = {"mean": statistics.mean(scores), "least": min(scores), "most": max(scores)}
    name = Path(asked.data).stem
    print(json.dumps(summary))
    print(write_record(f"accuracy-{name}", {"data": name, runs[0]["score_name"]: summary, "runs": runs}))


def one(data: str, case: str, seed: int, out: Path) -> dict:
    """Train once; the figures of its result, with the wall time of everything from opening the data to the report."""
    began = time.monotonic()
    config = swindow.configure(data, seed=seed, out=str(out), **({"masks": {"case": case}} if case else {}))
    result = train(config)
    evaluation = result.evaluation
    return {
        "seed": seed,
        "recipe": config.recipe,
        "split": evaluation.split,
        "score_name": evaluation.score_name,
        "score": evaluation.score,
        **evaluation.figures(),
        "steps": result.step,
        "wall_seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    main()
