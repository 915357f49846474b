"""Images without labels to answers: one image, a stream of them, or folders of files.

A classifier answers with probabilities of classes, a segmenter with the class of every pixel.
"""

from swindow.predict.answers import Covered, Failure, Prediction, PredictSummary, Segmentation
from swindow.predict.files import predict_files
from swindow.predict.predictor import Predictor

__all__ = ["Covered", "Failure", "PredictSummary", "Prediction", "Predictor", "Segmentation", "predict_files"]
