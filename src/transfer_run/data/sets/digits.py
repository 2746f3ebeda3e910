"""Handwritten digits that scikit-learn carries (1,797 grey images of 8 x 8; UCI "Optical Recognition of Handwritten
Digits", test part): real images on every machine, without a download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_run.data.images.image_data import ArrayImages, ImageData, ImageRows
from transfer_run.data.rows.splits import SPLITS, stratified_parts
from transfer_run.errors import UserError
from transfer_run.task import Task


class Digits(ImageData):
    """Classes are the digits of `dataset.classes`, in that order, or groups of them ([[0,1],[2,3]]); splits of 60, 20
    and 20 % of each digit."""

    _digits: Mapping[str, np.ndarray] = {}

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        classes = groups_of(dataset["classes"])
        if dataset.get("num_labels") not in (None, len(classes)):
            raise UserError(
                f"There are {len(classes)} classes, dataset.num_labels is {dataset['num_labels']}.",
                where=f"dataset.num_labels={dataset['num_labels']}",
                remedy="choose the digits by dataset.classes",
            )
        names = dataset.get("label_names") or ["+".join(map(str, digits)) for digits in classes]
        if len(names) != len(classes) or len(set(names)) != len(names):
            raise UserError(
                f"{len(classes)} classes have as many names, each another one.",
                where=f"dataset.label_names={list(names)}",
                remedy="name them in the order of dataset.classes, or leave it out",
            )
        return super().describe({**dataset, "label_names": list(names), "num_labels": len(classes)}, backbone)

    def read_images(self) -> dict[str, ImageRows]:
        from sklearn.datasets import load_digits

        digits, groups = load_digits(), groups_of(self.dataset["classes"])
        classes = [digit for group in groups for digit in group]
        kept = np.isin(digits.target, classes)
        # 17 grey levels, 0 to 16, spread over a byte
        pixels = np.round(digits.images[kept] * (255 / 16)).astype(np.uint8)
        labels = np.array([classes.index(digit) for digit in digits.target[kept]])
        parts = stratified_parts(labels, [0.6, 0.2, 0.2])
        of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        self._digits = {name: labels[rows] for name, rows in zip(SPLITS, parts, strict=True)}
        return {
            name: ArrayImages(pixels[rows], of[labels[rows]], f"scikit-learn's digits, {name}")
            for name, rows in zip(SPLITS, parts, strict=True)
        }

    def fine_labels(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The digits themselves, whatever groups are asked for."""
        digits = [digit for group in groups_of(self.dataset["classes"]) for digit in group]
        if len(digits) == len(self.label_names):
            return super().fine_labels(split)
        self.split(split)  # reads the data, or says that there is no such split
        found = self._digits[split]
        return found[self.subset[split]] if split in self.subset else found, tuple(map(str, digits))


def groups_of(classes: Any) -> list[list[int]]:
    """The digits of each class of `dataset.classes`, where one is a digit or a list of some.

    Raises:
        UserError: fewer than two, no digits, or one twice.
    """
    given = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    groups = [list(each) if isinstance(each, Sequence) and not isinstance(each, str) else [each] for each in given]
    digits = [digit for group in groups for digit in group]
    whole = all(isinstance(digit, int) and not isinstance(digit, bool) and 0 <= digit < 10 for digit in digits)
    if len(groups) < 2 or not all(groups) or not whole or len(set(digits)) != len(digits):
        raise UserError(
            "The classes are two or more different digits, or groups of them.",
            where=f"dataset.classes={classes}",
            remedy="dataset.classes=[5,6,7,8,9], or dataset.classes=[[0,1],[2,3]]",
        )
    return groups
