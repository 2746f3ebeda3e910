"""Handwritten digits that scikit-learn carries (1,797 grey images of 8 x 8; UCI "Optical Recognition of Handwritten
Digits", test part): real images on every machine, without a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer_run.data.images.image_data import ArrayImages, ImageData, ImageRows
from transfer_run.data.rows.splits import SPLITS, stratified_parts
from transfer_run.errors import UserError
from transfer_run.task import Task


class Digits(ImageData):
    """Classes are the digits of `dataset.classes`, in that order; splits of 60, 20 and 20 %."""

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        classes = list(dataset["classes"])
        if len(set(classes)) != len(classes) or not set(classes) <= set(range(10)) or len(classes) < 2:
            raise UserError(
                "The classes are two or more different digits.",
                where=f"dataset.classes={classes}",
                remedy="dataset.classes=[5,6,7,8,9]",
            )
        if dataset.get("num_labels") not in (None, len(classes)):
            raise UserError(
                f"There are {len(classes)} classes, dataset.num_labels is {dataset['num_labels']}.",
                where=f"dataset.num_labels={dataset['num_labels']}",
                remedy="choose the digits by dataset.classes",
            )
        names = dataset.get("label_names") or [str(digit) for digit in classes]
        if len(names) != len(classes) or len(set(names)) != len(names):
            raise UserError(
                f"{len(classes)} classes have as many names, each another one.",
                where=f"dataset.label_names={list(names)}",
                remedy="name them in the order of dataset.classes, or leave it out",
            )
        return super().describe({**dataset, "label_names": list(names), "num_labels": len(classes)}, backbone)

    def read_images(self) -> dict[str, ImageRows]:
        from sklearn.datasets import load_digits

        digits, classes = load_digits(), list(self.dataset["classes"])
        kept = np.isin(digits.target, classes)
        # 17 grey levels, 0 to 16, spread over a byte
        pixels = np.round(digits.images[kept] * (255 / 16)).astype(np.uint8)
        labels = np.array([classes.index(digit) for digit in digits.target[kept]])
        parts = stratified_parts(labels, [0.6, 0.2, 0.2])
        return {
            name: ArrayImages(pixels[rows], labels[rows], f"scikit-learn's digits, {name}")
            for name, rows in zip(SPLITS, parts, strict=True)
        }
