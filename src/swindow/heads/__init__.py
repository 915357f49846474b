"""Pyramid to answer. A head owns its outputs, its loss and its decoding; `HEADS` is the whole registry."""

from swindow.heads import classify
from swindow.heads.classify import Classifier, ClassifierConfig, ClassifierOutputs

HEADS = (classify,)

Head = Classifier
HeadConfig = ClassifierConfig

__all__ = ["HEADS", "Classifier", "ClassifierConfig", "ClassifierOutputs", "Head", "HeadConfig"]
