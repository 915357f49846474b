"""The main job on data that is always there: train on 1,797 scanned digits, judge, predict, explain."""

import argparse
import itertools
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

import swindow
from swindow.data import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder; a number is added if taken")
    out = free(parser.parse_args().out)

    result = swindow.train(swindow.configure("digits", out=str(out)))

    test = open_data("digits").split("test")
    photo = out / "digit.png"
    to_pil_image(test.read(0)).resize((160, 160), Image.Resampling.NEAREST).save(photo)
    prediction = swindow.Predictor(out)(photo)
    pictures = swindow.explain(out, photo).save(out / "explanation")

    print()
    print(f"test accuracy  {result.evaluation.accuracy:.2%} of {result.evaluation.count} digits never seen in training")
    print(f"report         {result.report}")
    print(f"prediction     {photo} is " + ", ".join(f"{name} ({share:.1%})" for name, share in prediction.top(3)))
    print(f"explanation    {pictures[0]}")


def free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that is not taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


if __name__ == "__main__":
    main()
