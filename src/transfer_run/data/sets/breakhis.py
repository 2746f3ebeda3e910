"""BreakHis (Spanhol et al. 2016): 7,909 microscope pictures of breast tumours of 82 patients at four magnifications.

A picture's name says all: SOB_M_DC-14-2773-40-001.png is malignant, a ductal carcinoma, of slide 2773 in the year 2014
(which stands for the patient), enlarged 40 times. Folders say nothing that is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_run.data.images.image_data import FileImages, ImageData, ImageRows
from transfer_run.data.reading.archive import place_of
from transfer_run.data.reading.pictures import check_whole, pictures_below, said_of
from transfer_run.data.reading.table import existing, path_of
from transfer_run.data.rows.splits import SPLITS, stratified_parts
from transfer_run.errors import UserError
from transfer_run.task import Task

GROUPS = {"B": "benign", "M": "malignant"}
SUBTYPES = {
    "A": "adenosis", "F": "fibroadenoma", "PT": "phyllodes tumor", "TA": "tubular adenoma",
    "DC": "ductal carcinoma", "LC": "lobular carcinoma", "MC": "mucinous carcinoma", "PC": "papillary carcinoma",
}  # fmt: skip
"""Four benign ones, then four malignant ones."""
BENIGN = ("A", "F", "PT", "TA")
MAGNIFICATIONS = (40, 100, 200, 400)
NAME = re.compile(r"SOB_([BM])_([A-Z]+)-(\d+)-([0-9A-Z]+)-(\d+)-(\d+)\.\w+", re.IGNORECASE)


class Slide(NamedTuple):
    """What a picture's name says."""

    group: str
    subtype: str
    patient: str
    magnification: int


def parsed(name: str) -> Slide | None:
    """What `SOB_M_DC-14-2773-40-001.png` says; None for any other name, or one whose group and subtype disagree."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    group, subtype, year, slide, magnification, _ = found.groups()
    group, subtype = group.upper(), subtype.upper()
    known = subtype in SUBTYPES and int(magnification) in MAGNIFICATIONS
    if not known or (group == "B") != (subtype in BENIGN):
        return None
    return Slide(group, subtype, f"{year}-{slide.upper()}", int(magnification))


class BreakHis(ImageData):
    """`dataset.path`: BreaKHis_v1, or any folder or .zip with its pictures.

    `dataset.diagnosis`: `binary`, benign or malignant; `subtype`, one of eight. `dataset.split`: `image` draws
    pictures, so that other pictures of a test patient are trained on; `patient` keeps all of a patient in one split.
    The split depends neither on the diagnosis nor on the magnification: whoever goes on from benign and malignant to
    the subtypes tests on pictures that were never trained on.
    """

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        names = list((GROUPS if dataset["diagnosis"] == "binary" else SUBTYPES).values())
        for key, wanted in (("num_labels", len(names)), ("label_names", names)):
            if dataset.get(key) not in (None, wanted):
                raise UserError(
                    f"dataset.diagnosis={dataset['diagnosis']} has {len(names)} classes: {', '.join(names)}.",
                    where=f"dataset.{key}={dataset[key]}",
                    remedy=f"leave dataset.{key} out; dataset.diagnosis chooses the classes",
                )
        return super().describe({**dataset, "label_names": names, "num_labels": len(names)}, backbone)

    def read_images(self) -> dict[str, ImageRows]:
        folder = existing(place_of(path_of(self.dataset), self.notes))
        pictures, left_out = pictures_below(folder)
        named = [(path, slide) for path in pictures if (slide := parsed(path.name))]
        if not named:
            raise UserError(
                "No picture is named as those of BreakHis are (SOB_M_DC-14-2773-40-001.png).",
                where=str(folder),
                remedy="name the folder that BreaKHis_v1.tar.gz unpacks to; dataset=image_folder reads class folders",
            )
        left_out["pictures of other names"] += len(pictures) - len(named)
        if said := said_of(+left_out):
            self.notes.append(f"{said} left out")
        self._refuse_twice([path for path, _ in named])
        slides = [slide for _, slide in named]
        wanted = self.dataset["magnification"]
        kept = [wanted == "all" or slide.magnification == int(wanted) for slide in slides]
        shares = self.dataset["split_shares"]
        found = {}
        for split, rows in zip(SPLITS, self._parts(slides, shares), strict=True):
            chosen = [row for row in rows if kept[row]]
            found[split] = self._images([named[row] for row in chosen])
            if split != "train":
                check_whole(found[split].paths)
        self.notes.append(self._said(slides, found))
        return dict(found)

    def _parts(self, slides: Sequence[Slide], shares: Mapping[str, float]) -> list[list[int]]:
        """Rows of train, validation and test with the same share of every subtype."""
        parts = [1.0, shares["validation"], shares["test"]]
        if self.dataset["split"] == "image":
            return stratified_parts(np.array([slide.subtype for slide in slides]), parts)
        of: dict[str, Counter[str]] = {}
        for slide in slides:
            of.setdefault(slide.patient, Counter())[slide.subtype] += 1
        patients = sorted(of)
        kinds = np.array([of[patient].most_common(1)[0][0] for patient in patients])
        where = {patients[n]: part for part, found in enumerate(stratified_parts(kinds, parts)) for n in found}
        return [[row for row, slide in enumerate(slides) if where[slide.patient] == part] for part in range(3)]

    def _images(self, named: Sequence[tuple[Path, Slide]]) -> FileImages:
        binary = self.dataset["diagnosis"] == "binary"
        codes = list(GROUPS if binary else SUBTYPES)
        labels = [codes.index(slide.group if binary else slide.subtype) for _, slide in named]
        return FileImages([path for path, _ in named], np.array(labels, dtype=np.int64))

    def _said(self, slides: Sequence[Slide], found: Mapping[str, FileImages]) -> str:
        """How it was split, next to every number of the run; patients in several splits are counted."""
        of = {
            split: {slide.patient for path in rows.paths if (slide := parsed(path.name))}
            for split, rows in found.items()
        }
        shared = len(of["test"] & (of["train"] | of["validation"]))
        rows = ", ".join(f"{split} {len(images.labels)}" for split, images in found.items())
        tail = f"; {shared} of {len(of['test'])} patients of test are trained on or chosen by, too" if shared else ""
        return f"split by {self.dataset['split']}: {rows}{tail}"

    @staticmethod
    def _refuse_twice(paths: Sequence[Path]) -> None:
        """UserError for a picture that lies in two folders: it could be trained and tested on."""
        twice = next((name for name, count in Counter(path.name for path in paths).items() if count > 1), None)
        if twice is not None:
            both = [str(path) for path in paths if path.name == twice][:2]
            raise UserError(
                f"The picture {twice} is there twice.", where=" and ".join(both), remedy="name one copy of the data set"
            )
