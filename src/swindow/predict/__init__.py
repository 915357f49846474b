"""Images without labels to answers: one image, a stream of them, or folders of files.

A classifier answers with probabilities of classes, a segmenter with the class of every pixel, a detector with
objects: boxes, scores and masks.
"""

from swindow.predict.answers import Counted, Covered, Failure, Found, Prediction, PredictSummary, Segmentation
from swindow.predict.files import predict_files
from swindow.predict.predictor import Predictor

__all__ = [
    "Counted",
    "Covered",
    "Failure",
    "Found",
    "PredictSummary",
    "Prediction",
    "Predictor",
    "Segmentation",
    "predict_files",
]
